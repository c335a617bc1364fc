"""Python source as plain words; the same on every Python."""

from __future__ import annotations

import pytest

from model.data.python_source import KeptLiterals, frequent_literals, read_lines, write_lines

SOURCE = '''"""Says what it does."""
import os  # a comment

class Tree:
    "A docstring in one line."

    def grow(self, by=1.5,
             *, name=f"{by!r:>{10}} {'nested'}"):
        """More
        words."""
        if by > 0x10:
            return os.path.join("a b", name,
                                'kept')
        x = "one" "two"; y = 1
'''


def test_source_becomes_one_logical_line_a_line() -> None:
    kept = KeptLiterals(frozenset({"'kept'"}), frozenset({"1"}))
    assert write_lines(read_lines(SOURCE), kept) == (
        "import os\n"
        "class Tree :\n"
        "    def grow ( self , by = <NUM_LIT> , * , name = <STR_LIT> ) :\n"
        "        if by > <NUM_LIT> :\n"
        "            return os . path . join ( <STR_LIT> , name , 'kept' )\n"
        "        x = <STR_LIT> <STR_LIT> ; y = 1\n"
    )


def test_frequent_literals_stay_unless_they_hold_blanks_or_are_formatted() -> None:
    lines = read_lines("a = 'x'\nb = 'two words'\nc = f'x'\nd = rF'x'\ne = b'x'\nf = 7\n")
    assert frequent_literals([lines]) == KeptLiterals(frozenset({"'x'", "b'x'"}), frozenset({"7"}))


def test_only_the_most_frequent_literals_stay() -> None:
    source = "".join(f"a = 'often{i}' , {i}\n" * 2 for i in range(300)) + "a = 'once' , 12345\n"
    kept = frequent_literals([read_lines(source)])
    assert len(kept.strings) == 200 and "'once'" not in kept.strings
    assert len(kept.numbers) == 30 and "12345" not in kept.numbers


@pytest.mark.parametrize("source", ["x = (1,\n", "if x:\n        a\n    b\n", 'x = """open\n'])
def test_what_is_no_python_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="no Python source"):
        read_lines(source)
