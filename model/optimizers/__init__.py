"""One optimizer a file: source, formula, class.  What is known of each without torch stands in model/config/optimizers.py."""
