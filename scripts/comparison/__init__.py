"""What compare.py and sweep.py are made of: runs and their evaluations, answers in words, tables and a page.

cells.py          the runs of a sweep: which values, which seed, which folder
evaluations.py    what evaluate.py left in runs, and which of them go together
answers.py        the two questions, answered in words and numbers
listing.py        runs as a table to sort and filter
report.py         the same on one page of HTML, with curves (curves.py) and pictures (pictures.py)
"""
