"""A page a method: what the sections of ``docs``, the registries and the measured tables say of it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from handbook import figures
from handbook.links import anchor, relink
from handbook.measured import measured_of
from handbook.options import Option, bullets, options_of, table
from handbook.sections import SOURCES, Section, read, sections_of
from taskvec.coefficients.after import SurgerySettings
from taskvec.coefficients.presets import PRESETS, preset
from taskvec.coefficients.settings import CoefficientSettings
from taskvec.combiners import COMBINERS
from taskvec.config import Config
from taskvec.merging import METHODS, method_of
from taskvec.merging.library import LibrarySettings
from taskvec.merging.served import EmrSettings, TallSettings, TsvSettings
from taskvec.parameters import schema_of
from taskvec.rules import RULES
from taskvec.training.penalties.settings import SETTINGS

FAMILIES = {
    "rules": "Rules",
    "combiners": "From joint training",
    "penalties": "Penalties",
    "learned": "Learned coefficients",
    "after": "After a merge",
    "served": "Several vectors served",
}
"""Family -> what the navigation calls it."""

HEADINGS = {
    "Representation surgery": "surgery",
    "A learned slope by depth": "learned_lines",
    "AdaRank: which singular directions to keep": "adarank",
}
"""Sections of ``docs/learned-merges.md`` -> the method that they are about."""

SERVED: Mapping[str, type[Config]] = {
    "library": LibrarySettings,
    "emr (task id)": EmrSettings,
    "tall": TallSettings,
    "tsv-compress": TsvSettings,
}
JOINT = "taskvec train -m minilm -t sst2 trec6 ag_news --lr 1e-4 --steps 30 --batch-size 16"
PENALIZED = "taskvec train -m minilm -s text8 -t sst2 --regime tangent --lr 2e-4 --steps 30"
LEARNED = "taskvec learn builtin -v a=gabor.safetensors -v b=greek.safetensors -s builtin8 -t gabor greek"
LAWS = {
    "order": "the order of the vectors does not matter",
    "scale": "vectors times c give the result times c",
}


@dataclass(frozen=True)
class Method:
    """What a page says beside the section of ``docs``.

    Attributes:
        usage: how it is called -> the text to type.
        facts: what it needs and what holds for it -> in words.
    """

    name: str
    family: str
    section: Section
    source: PurePosixPath
    usage: Mapping[str, str]
    facts: Mapping[str, str]
    options: list[Option] = field(default_factory=list)

    @property
    def place(self) -> PurePosixPath:
        """Of its page on the site."""
        return PurePosixPath("methods", f"{slug(self.name)}.md")


def slug(name: str) -> str:
    """A name as a file's."""
    return re.sub(r"[^\w]+", "-", name.replace("+", "p")).strip("-")


def every_method() -> Iterator[Method]:
    """All, family by family."""
    yield from (_rule(name) for name in RULES if _family(name) == "rules")
    yield from (_rule(name) for name in RULES if _family(name) == "combiners")
    yield from map(_penalty, SETTINGS)
    yield from map(_learned, PRESETS)
    yield from map(_after, ("surgery", "learned_lines"))
    yield from map(_served, METHODS)


def moved() -> dict[str, str]:
    """``docs/page.md#heading`` -> the page on the site that has this section."""
    found = (method for method in every_method() if method.source != SOURCES["after"])
    return {f"{method.source}#{anchor(method.name)}": str(method.place) for method in found}


def page(method: Method, elsewhere: Mapping[str, str]) -> str:
    """The page, as Markdown."""
    parts = [
        f"# {method.name}",
        *method.section.intro,
        "## Equation",
        *method.section.equation,
        _drawn(method.name),
        "## Use it",
        *(f"{label}:\n\n{text}" for label, text in method.usage.items()),
        "## Options",
        table(method.options) if method.options else "None.",
        *method.section.options,
        "## What it needs, and what holds",
        "\n".join(f"- **{what}:** {said}" for what, said in method.facts.items()),
        *method.section.notes,
        "## Measured",
        *_measured(method.name),
        "## Source",
        *(line.removeprefix("Source: ") for line in method.section.source),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return _papers(relink(text, method.source, method.place, elsewhere))


def _drawn(name: str) -> str:
    drawn = figures.figure(name)
    return "" if drawn is None else f"## What it does\n\n{drawn.svg}\n\n{drawn.caption}"


def _measured(name: str) -> Iterator[str]:
    tables = measured_of(name)
    for found in tables:
        yield f"`{found.command}` ([{found.heading}](results.md#{found.anchor})):\n\n{found.written()}"
    if not tables:
        yield (
            "No experiment file measures it: those of `docs/results.md` merge eight tasks, and show methods "
            "that take so many. `taskvec run` with its name in `methods: {rules: […]}` does."
        )


def _papers(text: str) -> str:
    """Numbers of arXiv as links."""
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def _family(name: str) -> str:
    return "combiners" if name in COMBINERS and name not in ("mean", "sum") else "rules"


def _rule(name: str) -> Method:
    rule, section = RULES[name], sections_of(read(SOURCES["rules"]))[name]
    [line] = section.usage
    command, call = re.findall(r"`([^`]+)`", line)
    usage = {
        "On the command line": _code(command),
        "In Python": _code(f"from taskvec import combine\n\nmerged = {call}", "python"),
        "Beside other methods, in an experiment": _code(f"methods: {{rules: [{name}]}}", "yaml"),
    }
    if name in COMBINERS:
        usage["In joint training"] = _code(f"{JOINT} --combiner {name} -o joint.safetensors")
    facts = {
        "Consumes": rule.consumes,
        "Task vectors": _number(*rule.tasks),
        "Stage": {"each": "changes each vector", "merge": "merges", "after": "changes what was merged"}[
            rule.role
        ],
        "Looks at": _LOOKS[rule.scope],
        "Coefficient without a search": f"{rule.coefficient:g}",
        "Laws": "; ".join(
            f"{law}: {'**no**' if short in rule.breaks else 'yes'}" for short, law in LAWS.items()
        ),
    }
    said = bullets("\n\n".join(section.options))
    rows = options_of(schema_of(name, rule.keywords), {}, said)
    return Method(name, _family(name), _told(section), SOURCES["rules"], usage, facts, rows)


_LOOKS = {
    "linear": "each entry by itself",
    "element": "each entry by itself",
    "model": "each entry, and numbers measured on the whole model",
    "tensor": "a whole tensor",
    "matrix": "singular vectors or inner products of each matrix",
}


def _number(least: int, most: int | None) -> str:
    if most == least:
        return f"{least} exactly"
    return "any number" if least == 1 else f"{least} or more"


def _told(section: Section) -> Section:
    """Without the list of parameters, which the table of options has."""
    return Section(section.intro, section.equation, [], section.usage, section.notes, section.source)


def _penalty(kind: str) -> Method:
    settings = SETTINGS[kind]
    section = sections_of(read(SOURCES["penalties"]))[kind]
    foreign = settings.foreign
    given = " --references trec6 ag_news" if foreign else ""
    command = f"{PENALIZED} --penalty {kind}{given} -o sst2.safetensors"
    others = ", references=others" if foreign else ""
    call = (
        f'settings = tv.TrainSettings(lr=2e-4, steps=30, penalty="{kind}")\n'
        f'vector = tv.finetune(model, part, regime="tangent", settings=settings{others})'
    )
    usage = {
        "On the command line": _code(command),
        "In Python": _code(call, "python"),
        "In an experiment": _code(
            f"regimes:\n  tangent-{kind}: {{select: full, space: tangent, lr: 2e-4, penalty: {kind}}}", "yaml"
        ),
    }
    facts = {
        "Consumes": "inputs of other tasks, without labels" if foreign else "nothing beside the task itself",
        "Goes with": "every regime, joint training and ATM",
        "Laws": "at strength 0 a training gives the bits of one without it",
    }
    return Method(
        kind, "penalties", section, SOURCES["penalties"], usage, facts, options_of(settings, {}, {})
    )


def _learned(name: str) -> Method:
    settings = preset(name)
    source = SOURCES["after" if name in HEADINGS.values() else "learned"]
    section = _section(source, name)
    usage = {
        "On the command line": _code(f"{LEARNED} --preset {name} --steps 80 -o merged.safetensors"),
        "In Python": _code(
            f'learned = tv.learn_coefficients(evaluator, vectors, ["gabor", "greek"], "{name}")', "python"
        ),
        "Beside other methods, in an experiment": _code(f"methods: {{rules: [{name}]}}", "yaml"),
    }
    facts = {
        "Consumes": _consumed(name),
        "Task vectors": "any number",
        "Learns": f"a coefficient for each {settings.scope} of each vector",
    }
    rows = options_of(CoefficientSettings, settings.model_dump(), {})
    return Method(name, "learned", section, source, usage, facts, rows)


def _after(name: str) -> Method:
    entry = f"tsv+{name}"
    usage = {
        "In Python": _code(_AFTER[name], "python"),
        "Beside other methods, in an experiment": _code(
            f"methods: {{rules: [{entry}, {{after: {name}, of: tsv}}]}}", "yaml"
        ),
    }
    facts = {"Consumes": _consumed(entry), "Comes after": "any method: `METHOD+" + name + "`"}
    settings = SurgerySettings if name == "surgery" else CoefficientSettings
    section = _section(SOURCES["after"], name)
    return Method(name, "after", section, SOURCES["after"], usage, facts, options_of(settings, {}, {}))


_AFTER = {
    "surgery": "fitted = tv.fit_surgery(given, own)",
    "learned_lines": 'found = tv.learn_lines(evaluator, tv.combine("ties", list(vectors.values())), tasks)',
}


def _served(name: str) -> Method:
    quoted = f'"{name}"' if " " in name else name
    usage = {
        "Beside other methods, in an experiment": _code(f"methods: {{rules: [{quoted}]}}", "yaml"),
        **({"On the command line": _code(_SERVED[name])} if name in _SERVED else {}),
    }
    facts = {"Consumes": _consumed(name), "Task vectors": "any number"}
    section = _section(SOURCES["served"], name)
    return Method(name, "served", section, SOURCES["served"], usage, facts, options_of(SERVED[name], {}, {}))


_SERVED = {
    "emr (task id)": "taskvec mask -v a=A -v b=B --method emr -o masks.safetensors",
    "tall": "taskvec mask -v a=A -v b=B --method tall --lam 0.4 -o masks.safetensors",
}


def _section(source: PurePosixPath, name: str) -> Section:
    text = read(source)
    for heading, known in HEADINGS.items():
        text = text.replace(f"\n## {heading}\n", f"\n## `{known}`\n")
    return sections_of(text)[name]


def _consumed(entry: str) -> str:
    return ", ".join(method_of(entry).consumes("validation")) or "the vectors alone"


def _code(text: str, language: str = "sh") -> str:
    return f"```{language}\n{text}\n```"
