"""What a plan is made from, as one value, and as a file of the run: `explain` and `diff` ask of it, whatever became of the sources.

Changes when a plan is made from something more.  Text in, text out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from neox_hpc.launchers import Shell
from neox_hpc.plan import Planned, make_plan
from neox_hpc.probe import Facts
from neox_hpc.render import Launch
from neox_hpc.request import Request
from neox_hpc.settings import Loaded
from neox_hpc.site import Site
from neox_hpc.vocabulary import RunFile

FILE = "inputs.json"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """All that a plan depends on."""

    loaded: Loaded
    site: Site
    places: Mapping[str, str]
    """Dotted fact of the site -> where it is written."""
    request: Request
    facts: Facts
    launch: Launch | None = None
    """Of a start whose hosts are known already."""

    def planned(self) -> Planned:
        """The plan, made (again)."""
        return make_plan(self.loaded, self.site, self.request, self.facts)


def write_inputs(inputs: Inputs) -> str:
    """The text of inputs.json.  The configuration's values stand in run.json."""
    loaded, launch = inputs.loaded, inputs.launch
    document = {
        "config": {"files": loaded.files, "places": dict(loaded.places), "notes": loaded.notes},
        "site": _with_units(inputs.site.model_dump(mode="json", exclude_defaults=True)),
        "places": dict(inputs.places),
        "request": dataclasses.asdict(inputs.request),
        "facts": dataclasses.asdict(inputs.facts),
        "launch": launch and {"argv": list(map(_word, launch.argv)), "world_info": launch.world_info},
    }
    return json.dumps(document, indent=1) + "\n"


def read_inputs(text: str, run: str) -> Inputs:
    """From the texts of inputs.json and run.json.

    Raises:
        ValueError: they are damaged, or of another version.
    """
    from pydantic import TypeAdapter

    try:
        document: dict[str, Any] = json.loads(text)
        config, launch = document["config"], document["launch"]
        return Inputs(
            loaded=Loaded(
                config=RunFile.model_validate_json(run).config,
                places=config["places"],
                files=tuple(config["files"]),
                notes=tuple(config["notes"]),
            ),
            site=Site.model_validate(document["site"]),
            places=document["places"],
            request=TypeAdapter(Request).validate_python(document["request"]),
            facts=TypeAdapter(Facts).validate_python(document["facts"]),
            launch=launch and Launch(argv=tuple(map(_read_word, launch["argv"])), world_info=launch["world_info"]),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a file of this version: {error}") from None


def _with_units(site: dict[str, Any]) -> dict[str, Any]:
    """Durations as a site file has them: a number without a unit is none there."""
    bins: Iterable[dict[str, Any]] = (each for queue in (site.get("queues") or {}).values() for each in queue.get("bins", ()))
    for node_bin in bins:
        node_bin |= {key: f"{node_bin[key]}s" for key in ("walltime", "min_walltime") if key in node_bin}
    return site


def _word(word: str) -> Any:
    return {"shell": word} if isinstance(word, Shell) else word


def _read_word(word: Any) -> str:
    return Shell(word["shell"]) if isinstance(word, dict) else str(word)
