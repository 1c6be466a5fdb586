"""Pages: a recording -> the values of its page. No HTML, no files; the index has a module of its own.

A template decides where a value stands and what it looks like; nothing is computed there. Every text of a recording
is data: it is escaped where it is shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from vsp_report.case import case_yaml
from vsp_report.recording import Collateral, Latent, Recording, Stop
from vsp_report.recording.parts import Row
from vsp_report.render import arms, figures, looking, prose, replay
from vsp_report.render.arms import Arm, Turn
from vsp_report.render.case_data import script_data
from vsp_report.render.figures import Figure, Table
from vsp_report.render.findings import (
    MODES,
    VERDICTS,
    Checked,
    Run,
    checks,
    contrast_of,
    counted,
    headline,
    mode_of,
    number,
    p_value,
    plain,
    share,
    steering_words,
    tone,
    verdict,
)
from vsp_report.render.labels import NOTHING, SOURCES, Known, told
from vsp_report.render.looking import LatentBar, Line


@dataclass(frozen=True)
class Download:
    name: str
    href: str
    what: str


OFFERED = (Download("Case", "case.yaml", "what was asked, as YAML"), Download("Citation", "cite.bib", "BibTeX"))
"""What stands beside a page and is offered there; the table of a figure is offered at the figure."""


@dataclass(frozen=True)
class Tested:
    """A line of the evidence that led to the diagnosis."""

    test: str
    finding: str
    change: str
    p: str
    holds: bool | None


@dataclass(frozen=True)
class CasePage:
    id: str
    title: str
    status: str
    verdict: str
    tone: str
    verdict_means: str
    mode: str
    mode_name: str
    mode_means: str
    mode_found: bool
    """by the diagnosis; else it is what the author believes"""
    mode_believed: str
    """what the author believed, where something else was found"""
    headline: tuple[Run, ...]
    description: str
    facts: tuple[str, ...]
    contents: tuple[tuple[str, str], ...]
    """the sections of the page: id and name"""
    story: Any
    prompt: str
    system: str
    contrast: tuple[str, str] | None
    picture_alt: str
    width_px: int
    height_px: int
    lines: tuple[Line, ...]
    words: Table
    selected: str
    opens: Row
    bars: tuple[LatentBar, ...]
    labelled: bool
    """whether a latent has a name"""
    arms: tuple[Arm, ...]
    has_margins: bool
    has_controls: bool
    has_intervals: bool
    turns: tuple[Turn, ...]
    rephrased: tuple[Arm, ...]
    collateral: tuple[tuple[str, Collateral], ...]
    figures: dict[str, Figure]
    clusters: tuple[str, ...]
    labels_told: tuple[str, ...]
    """how to read the labels of latents"""
    known: Known
    latents: Table
    evidence: tuple[Tested, ...]
    diagnosis_runs: int | None
    agreements: Table
    minimal: str
    settings: Table
    """what was recorded of steering, for who tries it without a model"""
    checks: tuple[Checked, ...]
    repeats: Table
    stop: Stop | None
    command: str
    provenance: tuple[tuple[str, str], ...]
    bibtex: str
    beside: dict[str, str | Table]
    """files that stand beside the page"""
    downloads: tuple[Download, ...]
    """those of them that are offered"""
    data: dict[str, Any] | None
    """for the page's script"""


def case_page(recording: Recording, known: Known = NOTHING) -> CasePage:
    """`known`: what the site's atlases know of the latents of this case, with whose labels it already is."""
    case, contrast = recording.case, contrast_of(recording)
    named = verdict(recording)
    mode, found = mode_of(recording)
    believed = case.get("failure") or ""
    opens = looking.start(recording)
    picture = recording.image
    lines, words, cited = arms.arms_of(recording), looking.words_table(recording, opens), bibtex(recording)
    charts, tests, settings, bars = (figures.figures_of(recording), _evidence(recording), _settings(recording),
                                     looking.bars(recording, opens, known))  # fmt: skip
    rephrased = arms.rephrased_of(recording)
    sections = (
        ("look", "Where it looks", picture is not None or opens is not None or recording.classified is not None),
        ("diagnosis", "Which failure it is", bool(tests)),
        ("steering", "What changes the answer" if recording.steered else "What the model says", bool(lines)),
        ("rephrased", "In other words", bool(rephrased)),
        ("concepts", "What each word reads" if "heatmap" in charts else "All latents", bool(recording.latents)),
        ("try", "Try it", bool(settings.rows)),
        ("expected", "What was expected", True),
        ("reproduce", "Reproduce", True),
    )
    return CasePage(
        id=recording.id,
        title=case["title"],
        status=recording.status,
        verdict=named,
        tone=VERDICTS[named][0],
        verdict_means=VERDICTS[named][1],
        mode=mode,
        mode_name=MODES[mode][0] if mode else "",
        mode_means=MODES[mode][1] if mode else "",
        mode_found=found,
        mode_believed=MODES[believed][0] if found and believed in MODES and believed != mode else "",
        headline=tuple(headline(recording, brief=True)),
        description=plain(headline(recording))[:300],
        facts=_facts(recording),
        contents=tuple((id, name) for id, name, there in sections if there),
        story=prose.story(case.get("story")),
        prompt=(case.get("prompt") or "").strip(),
        system=(case.get("system") or "").strip(),
        contrast=contrast,
        picture_alt=(picture.alt if picture and picture.alt else "The picture of this case"),
        width_px=picture.width_px if picture else 0,
        height_px=picture.height_px if picture else 0,
        lines=looking.strip(recording, opens),
        words=words,
        selected=recording.tokens[opens.token].text.strip() if opens else "",
        opens=opens.row if opens else "predicting",
        bars=bars,
        labelled=any(one.label for one in recording.latents),
        arms=lines,
        has_margins=any(one.bar for one in lines),
        has_controls=any(one.controls or one.change is not None for one in recording.steered),
        has_intervals=any(one.interval for one in lines),
        turns=arms.turns_of(recording),
        rephrased=rephrased,
        collateral=tuple((one.name, other) for one in recording.steered for other in one.collateral),
        figures=charts,
        clusters=figures.cluster_names(recording),
        labels_told=told(recording, known),
        known=known,
        latents=_latents(recording, known),
        evidence=tests,
        diagnosis_runs=recording.diagnosis.runs if recording.diagnosis else None,
        agreements=_agreements(recording),
        minimal=_minimal(recording),
        settings=settings,
        checks=tuple(checks(recording)),
        repeats=_repeats(recording),
        stop=recording.stop,
        command=recording.provenance.command or f"vsp-report run {recording.id}",
        provenance=_provenance(recording),
        bibtex=cited,
        beside=_beside(recording, words, cited),
        downloads=(
            Download("Case", "case.yaml", "what was asked, as YAML"),
            Download("Citation", "cite.bib", "BibTeX"),
        ),
        data=script_data(recording, opens, known),
    )


def _facts(recording: Recording) -> tuple[str, ...]:
    made, case = recording.provenance, recording.case
    seconds = f"{made.seconds:.0f} s" if made.seconds >= 1 else ""
    where = f"{seconds} on {made.device_class.partition(' ')[0].upper()}" if seconds and made.device_class else ""
    return tuple(filter(None, (made.model or case["model"], made.tap or case.get("tap") or "", where)))


def _evidence(recording: Recording) -> tuple[Tested, ...]:
    return tuple(
        Tested(one.test, one.finding, number(one.change, 2, True) if one.change is not None else "",
               p_value(one.p) if one.p is not None else "", one.holds)
        for one in (recording.diagnosis.evidence if recording.diagnosis else ())
    )  # fmt: skip


def _latents(recording: Recording, known: Known) -> Table:
    def facts(one: Latent) -> tuple[Any, ...]:
        seen = ", ".join(f"{reference.id} ({reference.activation:.3g})" for reference in one.references[:5])
        filtered = "left out of the heatmap as active everywhere" if one.noisy else ""
        frequency = share(one.frequency) if one.frequency is not None else None
        label = known.labels.get(one.number)
        score, by = (label.score, SOURCES.get(known.made[label.made].source, "")) if label else (None, "")
        return (one.number, one.label, score, by, one.strongest, one.total, frequency, one.mean_activation, seen,
                filtered)  # fmt: skip

    head = ("latent", "label", "label score", "label is", "strongest here", "total here", "frequency",
            "mean activation", "references", "note")  # fmt: skip
    return _without_empty(Table(head, tuple(facts(one) for one in recording.latents)))


def _without_empty(table: Table) -> Table:
    """Without the columns that say nothing."""
    kept = [i for i in range(len(table.head)) if any(row[i] not in (None, "") for row in table.rows)]
    return Table(tuple(table.head[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in table.rows))


def _agreements(recording: Recording) -> Table:
    """Attention and activation have no sign, and are held against the size of the effects."""
    head = ("ranked by", "held against", "rank correlation", "slope", "latents measured", "flips after")
    rows = ((one.by, "the effects" if one.by == "attribution" else "the size of effects", one.spearman, one.slope,
             one.measured, one.flips_after) for one in recording.agreements)  # fmt: skip
    return Table(head, tuple(rows))


def _minimal(recording: Recording) -> str:
    one = recording.minimal
    if one is None:
        return ""
    listed, contrast = ", ".join(map(str, one.latents)), contrast_of(recording)
    neither = ", which is neither of the two answers" if contrast and not tone(one.after, contrast) else ""
    return (
        f"The smallest set found that takes the log-odds to the other side of zero has "
        f"{counted(len(one.latents), 'latent')} ({listed}); with it ablated the model says “{one.after.text.strip()}”"
        f"{neither} (not compared with controls). "
        f"The search took {counted(one.runs, 'run')}."
    )


def _settings(recording: Recording) -> Table:
    """Every setting of the latents that was run, and what the model said."""
    head = ("setting", "what is edited", "strength", "answer", "log-odds")
    rows: list[tuple[Any, ...]] = []
    if recording.clean is not None and (recording.steered or recording.swept):
        rows.append(("clean", "nothing", None, recording.clean.text.strip(), recording.clean.margin))
    rows += [(one.name, steering_words(one), None, one.after.text.strip(), one.after.margin)
             for one in recording.steered]  # fmt: skip
    rows += [(swept.of, "its latents, multiplied", dose.factor, dose.answered.text.strip(), dose.answered.margin)
             for swept in recording.swept for dose in swept.doses]  # fmt: skip
    if recording.minimal is not None:
        after, listed = recording.minimal.after, ", ".join(map(str, recording.minimal.latents))
        rows.append(("smallest set", f"ablate {listed}", None, after.text.strip(), after.margin))
    return _without_empty(Table(head, tuple(rows)))


def _repeats(recording: Recording) -> Table:
    names = sorted({name for one in recording.repeats for name in one.figures})[:8]
    rows = ((one.seed, *(one.figures.get(name) for name in names)) for one in recording.repeats)
    return Table(("seed", *names), tuple(rows))


def _provenance(recording: Recording) -> tuple[tuple[str, str], ...]:
    made = recording.provenance
    hashes = {"run": made.run_key, "case": made.case_sha, "picture": made.image_sha, "model": made.model_sha,
              "states": made.states_sha, "SAE": made.sae_sha, "notebook": made.notebook_sha,
              "package": made.package_sha}  # fmt: skip
    facts = [
        ("model", made.model),
        ("SAE", made.sae),
        ("tap", made.tap),
        ("device", made.device_name or made.device_class),
        ("numbers", made.dtype),
        ("seed", str(made.seed)),
        ("seconds", f"{made.seconds:.1f}" if made.seconds else ""),
        ("recorded", made.created.replace("T", " ").replace("Z", " UTC")),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(made.versions.items()))),
        *((f"SHA-256, {name}", value) for name, value in hashes.items()),
    ]
    return tuple((name, value) for name, value in facts if value)


# --- what is taken away ----------------------------------------------------------------------------------------------


def _beside(recording: Recording, words: Table, cited: str) -> dict[str, str | Table]:
    """What was asked, how the case is cited, and what was said of each word."""
    files: dict[str, str | Table] = {"case.yaml": case_yaml(recording.case), "cite.bib": cited}
    files |= {"words.csv": words} if words.rows else {}
    return files | ({"replay.js": replayed} if (replayed := replay.script(recording)) else {})


# --- how it is cited -------------------------------------------------------------------------------------------------

_TEX = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", **{c: f"\\{c}" for c in "#$%&_"}, "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}"}  # fmt: skip


def bibtex(recording: Recording) -> str:
    """An entry for this recording: its hash says which of several it is."""
    made = recording.provenance
    program = made.versions.get("vsp_report", "")
    of = [f"model {made.model}" if made.model else "", f"sparse autoencoder {made.sae}" if made.sae else "",
          f"run {made.run_key[:16]}" if made.run_key else ""]  # fmt: skip
    values = {
        "title": recording.case["title"],
        "howpublished": f"Recorded with vsp\\_report {_tex(program)}".strip(),
        "note": "; ".join(filter(None, of)),
        "year": made.created[:4],
    }
    lines = [f"  {name} = {{{value if name == 'howpublished' else _tex(value)}}},\n"
             for name, value in values.items() if value]  # fmt: skip
    key = re.sub(r"[^A-Za-z0-9-]+", "-", recording.id).strip("-") or "case"
    return f"@misc{{{key},\n{''.join(lines)}}}\n"


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in " ".join(text.split()))
