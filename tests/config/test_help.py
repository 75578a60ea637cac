"""``--help`` lists every field that a config may hold."""

import dataclasses
from typing import Any, get_args

import pytest

from precalib_ray.config import help as help_text
from precalib_ray.config import jobs, load
from precalib_ray.config.jobs.pretrain import PretrainConfig
from precalib_ray.core.spec import Family, Section, hints


def all_paths(cls):
    """Every field that a config may hold, found another way: from pydantic's JSON schema."""
    schema = load._adapter(cls).json_schema()

    def walk(node, path, seen):
        if "$ref" in node:
            name = node["$ref"].rsplit("/", 1)[1]
            if name in seen:
                return
            seen = (*seen, name)
            node = schema["$defs"][name]
        for member in (*node.get("oneOf", ()), *node.get("anyOf", ())):
            yield from walk(member, path, seen)
        for key in ("items", "additionalProperties"):
            if isinstance(node.get(key), dict):
                yield from walk(node[key], path, seen)
        tagged = "const" in node.get("properties", {}).get("kind", {})
        for name, inner in node.get("properties", {}).items():
            if name == "kind" and tagged:
                yield f"{path}.kind={inner['const']}"
                continue
            here = f"{path}.{name}" if path else name
            yield here
            if not here.endswith((".parts.noise", "probes.noise")):  # (as noise)
                yield from walk(inner, here, seen)

    return set(walk(schema, "", ()))


@pytest.mark.parametrize("job", jobs.NAMES)
def test_every_field_is_described(job):
    cls = jobs.config_class(job)
    described = list(help_text.describe(cls))
    assert {line.path for line in described} == all_paths(cls)
    for line in described:
        assert line.meaning, line.path
        assert line.type or "kind=" in line.path
        for text in (line.type, line.default):
            for foreign in ("MISSING", "PydanticUndefined", "Annotated", "typing", "<class"):
                assert foreign not in text


def test_bounds_and_defaults():
    lines = list(help_text.describe(PretrainConfig))
    described = {line.path: (line.type, line.default) for line in lines}
    assert described["name"] == ("str", "required")
    assert described["seed"] == ("int >= 0 < 9223372036854775808", "0")
    assert described["duration.seconds"] == ("float|null > 0", "null")
    assert described["compute.precision"] == ("fp32|bf16", '"fp32"')
    assert described["trainable"] == ("all|head|list of str", '"all"')
    assert described["labels"][1] == "kind: hard"
    assert described["optimizer.betas"] == ("list of float", "[0.9, 0.999]")
    assert described["probes.noise"][1] == (
        '{"gaussian": {"kind": "gaussian"}, "pink": {"kind": "pink"}, '
        '"patches": {"kind": "patches"}}'
    )
    assert described["promote"] == ("section|null", "null")
    order = [line.path for line in lines]
    assert order.index("noise.scale") < order.index("noise.kind=gaussian")
    assert order.count("noise.scale") == 1


def parts(annotation: Any) -> set[type]:
    """The sections that an annotation may hold, with those that they hold."""
    found: set[type] = set()
    pending = [annotation]
    while pending:
        at = pending.pop()
        if isinstance(at, type) and issubclass(at, Section):
            if at in found:
                continue
            found.add(at)
            pending += getattr(at, "members", {}).values()
        pending += hints(at).values() if dataclasses.is_dataclass(at) else get_args(at)
    return found


def test_every_part_of_a_config_is_a_section_that_refuses_unknown_fields():
    found = set().union(*(parts(jobs.config_class(job)) for job in jobs.NAMES))
    assert len(found) > 55
    for part in found:
        assert part.__pydantic_config__["extra"] == "forbid"
        assert dataclasses.is_dataclass(part)
        assert part.__dataclass_params__.frozen
        if Family not in part.__bases__:
            assert part.__doc__
            assert not part.__doc__.startswith(f"{part.__name__}(")  # that of dataclasses
