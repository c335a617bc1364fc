"""Environment values that must reach every rank as they are, whatever starts it."""

EVIL = {
    "SPACES": "  a  b ",
    "DOLLARS": "$HOME ${PATH} $(id) $$",
    "TICKS": "`id`",
    "QUOTES": "it's \"so\" ''",
    "COMMAS": "a,b;c:d|e&f",
    "LENGTH": "node(x2)",
    "LINES": "one\ntwo\n\n",
    "LETTERS": "größe ☃ 漢",
    "PERCENTS": "%n %h %u %%",
    "BACKSLASHES": "a\\nb\\\\c\\",
    "STARS": "* ? ~ [a-z] {a,b} !x #y",
    "EQUAL_SIGNS": "a=b=c",
    "LONG": "x" * 4096,
    "NOTHING": "",
}
"""Values that a launcher, a shell or ssh might take for more than text."""
