"""Merge defaults < YAML files < flags into a RunSpec, and report every mistake at once, in flag names."""

from __future__ import annotations

import difflib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raymb.credentials import harmless
from raymb.errors import SpecError
from raymb.spec.conflicts import conflicts, stored_credentials
from raymb.spec.dotted import taken_as_flags
from raymb.spec.names import flag_meant
from raymb.spec.sections import SECTION_OF_FLAG, SECTIONS, RunSpec
from raymb.spec.values import Section

SHIPPED = Path(__file__).with_name("shipped")
"""A link to configs/ in the source tree, its content in a wheel."""


def load_spec(
    flags: Mapping[str, Any],
    config_files: Sequence[Path | Mapping[str, Any]] = (),
    overrides: Sequence[str] = (),
    recipe: Callable[[str, Mapping[str, Any]], Mapping[str, Any]] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> RunSpec:
    """Build the spec. With --recipe its values are below all others, and the spec no longer names it.

    Args:
        flags: flag name (no dashes in front) to value; None means not given.
        config_files: YAML files with flag names in sections, or the same as mappings; a later one wins.
        overrides: `section.field=value` words for ConfigContainer fields; one that a flag owns is taken as the flag,
            if its value says the same.
        recipe: from a recipe's name, and what YAML and flags give, to the recipe's sections.
        say: told a line for each field that is taken as a flag.

    Raises:
        SpecError: with every mistake found, one a line.
    """
    merged: dict[str, Any] = {}
    problems: list[str] = []
    said: list[str] = []
    for file in config_files:
        content, where = _sections(file)
        problems += _unknown_keys(content, where)
        merged = _merge(merged, _with_dotted_flags(_without_unknown(content), problems, said))
    dotted = _parsed_overrides(overrides, problems)
    flags = {flag: value for flag, value in flags.items() if value is not None}
    taken = taken_as_flags(dotted, flags)
    problems += taken.problems
    said += taken.said
    for flag, value in {**taken.flags, **flags}.items():
        merged = _merge(merged, {SECTION_OF_FLAG[flag]: {flag: value}})
    name = merged.get("model", {}).pop("recipe", None)
    if name is not None:
        if recipe is None:
            raise SpecError(f"--recipe {name} is read by commands only", f"raymb recipes show {name} writes it as YAML")
        merged = _merge(recipe(str(name), merged), merged)
    given = merged.get("overrides")
    merged["overrides"] = (dict(given) if isinstance(given, Mapping) else {}) | taken.rest
    merged.setdefault("model", {})
    try:
        spec = RunSpec.model_validate(merged)
        problems += conflicts(spec)
    except ValidationError as error:
        problems += _in_flag_names(error)
    if problems:
        raise SpecError("\n  ".join(problems))
    for line in said:
        say(line)
    return spec


def load_section[Kind: Section](model: type[Kind], flags: Mapping[str, Any]) -> Kind:
    """A section of a command's own, from its flags; None means not given.

    Raises:
        SpecError: with every mistake found, one a line.
    """
    try:
        section = model.model_validate({flag: value for flag, value in flags.items() if value not in (None, [])})
    except ValidationError as error:
        raise SpecError("\n  ".join(_in_flag_names(error, depth=0))) from None
    if problems := list(stored_credentials(section)):
        raise SpecError("\n  ".join(problems))
    return section


def spec_to_json(spec: RunSpec) -> str:
    """The spec as it is stored: what came with --env and is not known to be harmless is left out, and must be given
    again to repeat a run."""
    return without_secrets(spec).model_dump_json(indent=2) + "\n"


def spec_as_yaml(spec: RunSpec) -> str:
    """The same as YAML for --config, in the order of the schema."""
    import yaml

    content = without_secrets(spec).model_dump(mode="json")
    return yaml.safe_dump(content, sort_keys=False, width=1000)


def without_secrets(spec: RunSpec) -> RunSpec:
    """The spec without the environment variables that are not known to be harmless."""
    return spec.changed(cluster={"env": harmless(spec.cluster.env)})


def spec_from_json(text: str) -> RunSpec:
    return RunSpec.model_validate_json(text)


def _sections(source: Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """What a YAML file or a mapping says, and what messages call it."""
    if isinstance(source, Mapping):
        return _checked_sections(source, "config"), "config"
    where = f"--config {source}"
    return _checked_sections(_read_yaml(source), where), where


def _checked_sections(content: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise SpecError(f"{where}: a mapping of sections is expected", f"sections: {', '.join(SECTIONS)}, overrides")
    return content


def _read_yaml(file: Path) -> Any:
    """One YAML (or spec.json) file with OmegaConf interpolations resolved."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        return OmegaConf.to_container(
            OmegaConf.load(io.StringIO(_colons_as_text(_found(file).read_text("utf-8")))), resolve=True
        )
    except FileNotFoundError:
        names = ", ".join(sorted(shipped.stem for shipped in SHIPPED.glob("*.yaml")))
        hint = f"a path, or the name of a config that comes with raymb: {names}" if len(file.parts) == 1 else ""
        raise SpecError(f"--config {file}: no such file", hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"--config {file}: cannot be read ({error})") from None
    except (YAMLError, OmegaConfBaseException) as error:
        raise SpecError(f"--config {file}: not valid YAML: {' '.join(str(error).split())}") from None


def _found(file: Path) -> Path:
    """The file, or the config that comes with raymb whose name it is where there is no such file."""
    shipped = SHIPPED / f"{file.name.removesuffix('.yaml')}.yaml"
    return shipped if len(file.parts) == 1 and not file.exists() and shipped.exists() else file


def _colons_as_text(text: str) -> str:
    """Quote 4:16 and 1:30:00, which YAML 1.1 takes for numbers in base 60: 256 workers, 5400."""
    import yaml

    for token in reversed(list(yaml.scan(text))):
        if isinstance(token, yaml.ScalarToken) and token.plain and _BASE_60.fullmatch(token.value):
            text = f"{text[: token.start_mark.index]}'{token.value}'{text[token.end_mark.index :]}"
    return text


_BASE_60 = re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?")


def _unknown_keys(content: Mapping[str, Any], where: str) -> list[str]:
    problems = []
    for section, fields in content.items():
        if section == "overrides":
            if not isinstance(fields, Mapping):
                problems.append(f"{where}: overrides: a mapping of ConfigContainer paths is expected")
            continue
        if section not in SECTIONS:
            place = f" (it belongs into section {SECTION_OF_FLAG[section]})" if section in SECTION_OF_FLAG else ""
            close = difflib.get_close_matches(section, list(SECTIONS), n=1)
            guess = f"; did you mean {close[0]!r}?" if close else _elsewhere(section, "")
            problems.append(f"{where}: unknown section {section!r}{place or guess}")
        elif not isinstance(fields, Mapping):
            problems.append(f"{where}: section {section!r} must be a mapping, not {fields!r}")
        else:
            problems += [
                f"{where}: unknown key {section}.{key}{_elsewhere(str(key), section)}"
                for key in fields
                if key not in SECTIONS[section].model_fields
            ]
    return problems


def _elsewhere(key: str, section: str) -> str:
    if key in SECTION_OF_FLAG:
        return f" (it belongs into section {SECTION_OF_FLAG[key]})"
    near = SECTIONS[section].model_fields if section in SECTIONS else ()
    flag = flag_meant(key, near) or flag_meant(key, SECTION_OF_FLAG)
    where = f" in section {SECTION_OF_FLAG[flag]}" if flag and SECTION_OF_FLAG[flag] != section else ""
    return f"; did you mean {flag!r}{where}?" if flag else ""


def _without_unknown(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the schema knows of a YAML file, so that its values can be checked although some keys are unknown."""
    kept: dict[str, Any] = {}
    for section, fields in content.items():
        if section == "overrides":
            kept[section] = fields
        elif section in SECTIONS and isinstance(fields, Mapping):
            kept[section] = {key: value for key, value in fields.items() if key in SECTIONS[section].model_fields}
    return kept


def _with_dotted_flags(content: Mapping[str, Any], problems: list[str], said: list[str]) -> dict[str, Any]:
    """A YAML file's sections, with the paths of its `overrides` that are flags as flags."""
    overrides = content.get("overrides")
    if not isinstance(overrides, Mapping):
        return dict(content)
    given = {flag: value for name, section in content.items() if name != "overrides" for flag, value in section.items()}
    taken = taken_as_flags({str(path): value for path, value in overrides.items()}, given)
    problems += taken.problems
    said += taken.said
    flags: dict[str, Any] = {}
    for flag, value in taken.flags.items():
        flags.setdefault(SECTION_OF_FLAG[flag], {})[flag] = value
    return _merge({**content, "overrides": taken.rest}, flags)


def _parsed_overrides(words: Sequence[str], problems: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in words:
        path, value, problem = _parse_override(word)
        if problem:
            problems.append(problem)
        else:
            found[path] = value
    return found


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` over `base`; mappings (sections, env, overrides) are merged key by key."""
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _parse_override(word: str) -> tuple[str, Any, str]:
    """`a.b=1` to ("a.b", 1, ""); a mistake comes back as the third item."""
    import yaml

    path, separator, text = word.partition("=")
    if not separator or "." not in path or not all(part.isidentifier() for part in path.split(".")):
        return "", None, f"override {word!r}: section.field=value is expected, for example optimizer.decoupled_lr=1e-4"
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return "", None, f"override {word!r}: {text!r} is not a YAML value; quote it"
    if isinstance(value, str) and _is_number(value):  # YAML 1.1 reads 1e-4 as a string
        value = float(value)
    return path, value, ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _in_flag_names(error: ValidationError, depth: int = 1) -> list[str]:
    """A line for every wrong value that names the flag, the value and the rule; `depth` sections are above a flag.

    pydantic reports a value of `int or "auto"` once for each of the two; they become one line.
    """
    rules: dict[str, list[str]] = {}
    for item in error.errors():
        location = [str(part) for part in item["loc"]]
        name = location[depth] if len(location) > depth else location[0]
        if item["type"] == "missing":
            rules.setdefault(f"--{name}", ["needed"])
            continue
        value = item["input"]
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        shown = value if isinstance(value, str | int | float) else json.dumps(value, default=str)
        rules.setdefault(f"--{name} {shown}", []).append(_rule(name, item))
    return [
        subject
        + (" is needed" if texts == ["needed"] else f": {' or '.join(dict.fromkeys(texts))}").replace(
            " or must be ", " or "
        )
        for subject, texts in rules.items()
    ]


def _rule(name: str, item: Any) -> str:
    """pydantic's message about a flag as a rule."""
    kind = str(item["type"])
    known: dict[str, str] = {
        "int_parsing": "must be a whole number",
        "int_type": "must be a whole number",
        "int_from_float": "must be a whole number",
        "float_parsing": "must be a number",
        "float_type": "must be a number",
        "finite_number": "must be a finite number",
        "bool_parsing": "must be true or false",
        "bool_type": "must be true or false",
        "string_type": "must be text; quote it in YAML",
        "dict_type": "must be a mapping of names to values",
        "string_pattern_mismatch": "must be letters, digits, '.', '_' and '-', and start with a letter or digit",
    }
    message: str = item["msg"].replace("Input should be", "must be").replace("String should", "must")
    return _RULES_OF_FLAGS.get((name, kind)) or known.get(kind, message)


_MIN_MAX = "must be MIN:MAX, two whole numbers from 1 up such as 4:16"
_RULES_OF_FLAGS = {
    **{
        (flag, kind): _MIN_MAX
        for flag in ("num_workers", "data_parallel_size")
        for kind in ("string_pattern_mismatch", "string_type")
    },
    ("max_time", "string_pattern_mismatch"): "must be seconds, 90m, 2h, 1d or [DAYS-]HH:MM[:SS]",
}
"""Where a flag has a form of its own: (flag, kind of mistake) -> rule."""
