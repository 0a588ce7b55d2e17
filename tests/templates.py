"""The templates of `deploy/cloudformation`, read for tests."""

from typing import Any

import yaml

from deploy.aws.stacks import TEMPLATES


class _Loader(yaml.SafeLoader):
    """Reads CloudFormation's short tags as its long forms: `!Ref x` as `{"Ref": "x"}`."""


def _long_form(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    name = suffix if suffix in {"Ref", "Condition"} else f"Fn::{suffix}"
    if isinstance(node, yaml.ScalarNode):
        return {name: loader.construct_scalar(node)}
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    assert isinstance(node, yaml.MappingNode)
    return {name: loader.construct_mapping(node, deep=True)}


_Loader.add_multi_constructor("!", _long_form)


def read_template(name: str) -> dict[str, Any]:
    """A template, such as `service`, in the long form of its functions."""
    text = (TEMPLATES / f"{name}.yaml").read_text(encoding="utf-8")
    template: dict[str, Any] = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    return template


def arguments_only(value: Any) -> Any:
    """A value with each function replaced by what it is given: `{"Fn::Sub": "x"}` by `x`."""
    if isinstance(value, list):
        return [arguments_only(each) for each in value]
    if isinstance(value, dict):
        if len(value) == 1 and next(iter(value)).startswith(("Fn::", "Ref")):
            return arguments_only(*value.values())
        return {name: arguments_only(each) for name, each in value.items()}
    return value
