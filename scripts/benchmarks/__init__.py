"""The benchmark, a module per subcommand of scripts/benchmark.py and per noun that they share.

walks        pictures drawn with a count of their cost, and the distance between two walks
references   long walks from the same noise, kept on disk
timing       alternating repetitions and their medians
figures      what is measured of one set of pictures, kept in a JSON file
cells        which settings are measured
tables, plots   how the figures are shown
"""
