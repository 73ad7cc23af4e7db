"""The HTML report of a loop: one file that loads nothing, runs nothing and can be mailed, archived and printed."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from samcorrect.lib.report import plots
from samcorrect.lib.report.pictures import LabelPicture, contour_style, picture_svg
from samcorrect.lib.settings import Settings
from samcorrect.lib.store.files import write_bytes_atomically

NOT_DEFINED = "not defined"
# Arm -> title and what it is, in the order of the table.
ARMS = {
    "sam_only": ("SAM only", "SAM's masks from the protocol's prompts as given"),
    "sam_to_student": ("SAM to student", "a student trained on SAM's masks, none corrected"),
    "sam_search_to_student": (
        "SAM search to student",
        "a student trained on SAM's masks of the best prompts, none corrected",
    ),
    "huang2023": (
        "Huang et al. 2023",
        "their correction framework (arXiv 2308.00883), the faults of its code repaired",
    ),
    "samcorrect": ("samcorrect", "this product's full loop"),
    "supervised": ("Fully supervised", "the same student trained on the ground truth: the upper bound"),
}
QUALITY_COLUMNS = {
    "spearman": "Rank correlation (Spearman)",
    "auroc_dice_below_0.8": "AUROC, Dice below 0.8",
    "auroc_dice_below_0.9": "AUROC, Dice below 0.9",
}
# Shown in sections of their own; whatever else the report holds goes to the details.
SECTION_KEYS = {
    "arms", "comparisons", "quality", "correction", "quarantined", "seconds", "versions", "settings", "rounds",
    "serve_command", "stop_reason", "left_out",
}  # fmt: skip


def render_report(
    path: Path,
    report: Mapping[str, Any],
    *,
    worst: Sequence[LabelPicture],
    best: Sequence[LabelPicture],
    corrections: Sequence[LabelPicture],
    scores: Mapping[str, Sequence[float]],
    training_curves: Mapping[str, Sequence[tuple[int, float]]],
    structure_names: Mapping[int, str],
    score_vs_dice: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> None:
    """Write the report of a loop as one self-contained HTML file, atomically.

    Args:
        path: The HTML file.
        report: The content of report.json; every key may be missing, every number may be None or nan.
        worst: The labels that the scores trust least, worst first.
        best: The labels that the scores trust most, best first.
        corrections: Labels before and after correction.
        scores: Name (a round) -> quality scores in [0, 1] of all labels; nan where not defined.
        training_curves: Name -> (step, loss).
        structure_names: Label index -> name.
        score_vs_dice: Name -> (scores, Dice with ground truth), equally long; None without ground truth.

    Raises:
        StoreError: The file cannot be written.
    """
    clean = _clean(report)
    pictures = {"worst": worst, "best": best, "corrections": corrections}
    view = {
        "summary": summary_sentences(clean),
        "tiles": _tiles(clean),
        "serve_command": clean.get("serve_command"),
        "arms": _arms_view(clean),
        "left_out": {ARMS.get(name, (name,))[0]: reason for name, reason in (clean.get("left_out") or {}).items()},
        "comparisons": [_comparison_sentence(k, v) for k, v in (clean.get("comparisons") or {}).items() if v],
        "quality": _quality_view(clean),
        "correction": _correction_view(clean),
        "rounds": clean.get("rounds") or [],
        "quarantined": clean.get("quarantined") or [],
        "seconds": _seconds_view(clean),
        "versions": clean.get("versions") or {},
        "settings": {key: _plain(value) for key, value in (clean.get("settings") or {}).items()},
        "facts": {key.replace("_", " "): _plain(value) for key, value in clean.items() if key not in SECTION_KEYS},
        "plots": _plots_view(clean, scores, training_curves, score_vs_dice or {}),
        "pictures": {name: [_picture_view(p, structure_names) for p in group] for name, group in pictures.items()},
        "legends": {name: _legend(group) for name, group in pictures.items()},
    }
    page = _environment().get_template("report.html").render(view)
    # A file name that is not UTF-8 holds lone surrogates, which no encoding can write.
    write_bytes_atomically(path, page.encode("utf-8", "replace"))


def summary_sentences(report: Mapping[str, Any]) -> list[str]:
    """Say in words what was run and what came of it; a sentence whose numbers are missing is left out."""
    sentences = []
    rounds, n_images = report.get("rounds") or [], report.get("n_images")
    if n_images is not None:
        runs = f" in {_count(len(rounds), 'round')}" if rounds else ""
        sentences.append(
            f"SAM labelled {_count(n_images, 'image')} by the protocol; "
            f"the labels were scored, corrected and learned from{runs}."
        )
    if report.get("stop_reason"):
        sentences.append(f"No further round was run: {report['stop_reason']}.")
    n_flagged, n_corrected = _correction_counts(report)
    if n_flagged is not None:
        corrected = "" if n_corrected is None else f"; {n_corrected} of them {_were(n_corrected)} corrected"
        sentences.append(f"{_count(n_flagged, 'label')} {_were(n_flagged)} flagged as doubtful{corrected}.")
        n_left = 0 if n_corrected is None else n_flagged - n_corrected
        if n_left > 0:
            keep, them = ("keeps its mask", "it") if n_left == 1 else ("keep their masks", "them")
            sentences.append(f"{_count(n_left, 'doubtful label')} {keep}: a person should see {them} first.")
    n_chosen_again = (report.get("correction") or {}).get("n_chosen_again")
    if n_chosen_again:
        sentences.append(
            f"{_count(n_chosen_again, 'other label')} took the mask of another prompt, "
            "with which students of other images agree better."
        )
    n_quarantined = len(report.get("quarantined") or [])
    if n_quarantined:
        sentences.append(
            f"{_count(n_quarantined, 'image')} could not be used and {_were(n_quarantined)} set aside (reasons below)."
        )
    in_use = report.get("model_in_use")
    if in_use and in_use != report.get("model_digest"):
        sentences.append(f"Another student than that of the last round is in use: {in_use[:12]}.")
    sentences += _ground_truth_sentences(report)
    return sentences


def _ground_truth_sentences(report: Mapping[str, Any]) -> list[str]:
    sentences = []
    arms = report.get("arms") or {}
    dice = {name: arm.get("dice_mean") for name, arm in arms.items() if arm}
    ours = dice.get("samcorrect")
    if ours is not None:
        others = [
            f"{ARMS[name][0]} {_number(dice[name])}"
            for name in ARMS
            if name != "samcorrect" and dice.get(name) is not None
        ]
        against = f" ({'; '.join(others)})" if others else ""
        sentences.append(
            f"Against the ground truth the student of samcorrect reaches a mean Dice of {_number(ours)}{against}."
        )
    correction = report.get("correction") or {}
    before, after = correction.get("dice_before"), correction.get("dice_after")
    if before is not None and after is not None:
        harmed = correction.get("good_harmed_share")
        tail = "" if harmed is None else f"; {harmed:.1%} of the good labels were harmed"
        sentences.append(f"Correction took mean Dice from {_number(before)} to {_number(after)}{tail}.")
    return sentences


def _correction_counts(report: Mapping[str, Any]) -> tuple[int | None, int | None]:
    correction = report.get("correction") or ((report.get("rounds") or [{}])[-1] or {})
    return correction.get("n_flagged"), correction.get("n_corrected")


def _tiles(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    n_flagged, n_corrected = _correction_counts(report)
    dice = ((report.get("arms") or {}).get("samcorrect") or {}).get("dice_mean")
    tiles = [
        ("images", report.get("n_images")),
        ("labels flagged", n_flagged),
        ("labels corrected", n_corrected),
        ("images set aside", None if report.get("quarantined") is None else len(report["quarantined"])),
        ("mean Dice, samcorrect", None if dice is None else _number(dice)),
    ]
    return [(name, str(value)) for name, value in tiles if value is not None]


def _arms_view(report: Mapping[str, Any]) -> dict[str, Any]:
    arms = {name: arm for name, arm in (report.get("arms") or {}).items() if arm}
    ordered = [name for name in ARMS if name in arms] + [name for name in arms if name not in ARMS]
    structures = list(dict.fromkeys(s for name in ordered for s in arms[name].get("structures") or {}))
    rows = []
    for name in ordered:
        arm = arms[name]
        title, meaning = ARMS.get(name, (name, ""))
        low, high = _interval(arm.get("dice_ci95"))
        per_structure = [(arm.get("structures") or {}).get(structure) or {} for structure in structures]
        numbers = {k: _number(arm.get(k)) for k in ("dice_mean", "dice_sd", "surface_dice_mean", "surface_dice_sd")}
        rows.append({
            **numbers, "key": name, "title": title, "meaning": meaning, "is_prompted": bool(arm.get("is_prompted")),
            "interval": _range(low, high), "n": _plain(arm.get("n")),
            "structures": [(_number(s.get("dice_mean")), _number(s.get("surface_dice_mean"))) for s in per_structure],
        })  # fmt: skip
    steps = (report.get("settings") or {}).get("student_steps")
    usual_steps = Settings.model_fields["student_steps"].default
    return {
        "structures": structures, "rows": rows, "has_prompted": any(row["is_prompted"] for row in rows),
        "usual_steps": usual_steps, "few_steps": steps if steps and 2 * steps <= usual_steps else None,
    }  # fmt: skip


def _comparison_sentence(name: str, comparison: Mapping[str, Any]) -> str:
    first, _, second = name.partition(" - ")
    first, second = (ARMS.get(arm, (arm,))[0] for arm in (first, second))
    pair = f"{first} minus {second}" if second else first
    low, high = _interval(comparison.get("ci95"))
    difference = comparison.get("dice_difference_mean")
    if difference is None:
        return f"{pair}: {NOT_DEFINED}."
    if low is None:
        return f"{pair}: {_signed(difference)} mean Dice, paired by image."
    verdict = "the interval excludes 0" if low > 0 or high < 0 else "the interval includes 0, so no difference is shown"
    return (
        f"{pair}: {_signed(difference)} mean Dice, 95% interval {_signed(low)} to {_signed(high)}, paired by image; "
        f"{verdict}."
    )


def _quality_view(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    quality = report.get("quality") or {}
    rows = {"all labels": quality, **(quality.get("structures") or {})}
    return [
        {"name": name, "values": [_number((row or {}).get(key), 2) for key in QUALITY_COLUMNS]}
        for name, row in rows.items()
        if any((row or {}).get(key) is not None for key in QUALITY_COLUMNS) or (quality and name != "all labels")
    ]


def _correction_view(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    correction = report.get("correction") or {}
    columns = {
        "n_flagged": ("Labels flagged", str),
        "n_corrected": ("Labels corrected", str),
        "n_chosen_again": ("Others with another prompt's mask", str),
        "dice_before": ("Mean Dice before", _number),
        "dice_after": ("Mean Dice after", _number),
        "good_harmed_share": ("Good labels harmed", "{:.1%}".format),
    }
    return [(title, form(correction[k])) for k, (title, form) in columns.items() if correction.get(k) is not None]


def _seconds_view(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    seconds = {name: value for name, value in (report.get("seconds") or {}).items() if value is not None}
    total = sum(seconds.values())
    rows = [
        {
            "stage": name.replace("_", " "),
            "time": _duration(s),
            "percent": round(100 * s / total, 1) if total > 0 else 0,
        }
        for name, s in seconds.items()
    ]
    return [*rows, {"stage": "all stages", "time": _duration(total), "percent": None}] if len(rows) > 1 else rows


def _plots_view(
    report: Mapping[str, Any],
    scores: Mapping[str, Sequence[float]],
    training_curves: Mapping[str, Sequence[tuple[int, float]]],
    score_vs_dice: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> dict[str, str]:
    """Name -> data URI of each plot, None where it has nothing to show."""
    arms = report.get("arms") or {}
    intervals = [
        plots.ArmInterval(
            ARMS[name][0], arm["dice_mean"], *_interval(arm.get("dice_ci95")), bool(arm.get("is_prompted"))
        )
        for name, arm in ((name, arms.get(name) or {}) for name in ARMS)
        if arm.get("dice_mean") is not None
    ]
    finite = {_printable(name): _finite(values) for name, values in scores.items()}
    finite = {name: values for name, values in finite.items() if len(values)}
    pairs = {_printable(name): _finite(np.column_stack(pair)).T for name, pair in score_vs_dice.items() if len(pair[0])}
    pairs = {name: (pair[0], pair[1]) for name, pair in pairs.items() if pair.size}
    curves = {_printable(name): _finite(points).tolist() for name, points in training_curves.items() if len(points)}
    curves = {name: points for name, points in curves.items() if points}
    drawn = {
        "arms": plots.plot_arms(intervals) if intervals else None,
        "scores": plots.plot_score_histograms(finite) if finite else None,
        "score_vs_dice": plots.plot_score_against_dice(pairs) if pairs else None,
        "training": plots.plot_training_curves(curves) if curves else None,
    }
    return {name: svg and _svg_uri(svg) for name, svg in drawn.items()}


def _picture_view(picture: LabelPicture, structure_names: Mapping[int, str]) -> dict[str, Any]:
    score = _clean(picture.score)
    return {
        "image_id": picture.image_id,
        "caption": picture.caption,
        "percent": None if score is None else round(100 * min(max(score, 0), 1)),
        "uri": _svg_uri(picture_svg(picture, structure_names)),
    }


def _legend(group: Sequence[LabelPicture]) -> list[dict[str, str]]:
    names = list(dict.fromkeys(name for picture in group for name in picture.contours))
    styles = [(name, contour_style(name, names)) for name in names]
    # The swatch is about 40 px wide, a picture about 300: the dashes look alike.
    return [{"name": n, "colour": s.colour, "dashes": " ".join(f"{3 * d:.1f}" for d in s.dashes)} for n, s in styles]


def _clean(value: Any) -> Any:
    """Plain dicts, lists and numbers, None in the place of nan and infinity."""
    if isinstance(value, Mapping):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite(rows: Any) -> np.ndarray:
    """The rows (or values) without nan, infinity or None in them, as float64."""
    array = np.asarray(rows, dtype=np.float64)
    return array[np.isfinite(array).reshape(len(array), -1).all(axis=1)]


def _interval(bounds: Any) -> tuple[float, float] | tuple[None, None]:
    if not bounds or len(bounds) != 2 or None in bounds:
        return None, None
    return bounds[0], bounds[1]


def _number(value: float | None, n_digits: int = 3) -> str:
    return NOT_DEFINED if value is None else f"{value:.{n_digits}f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def _plain(value: Any) -> str:
    if value is None:
        return NOT_DEFINED
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list | bool) else str(value)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _were(n: int) -> str:
    return "was" if n == 1 else "were"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _printable(text: str) -> str:
    """Without control characters, which XML forbids."""
    return "".join(c for c in str(text) if c.isprintable())


def _svg_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8", "replace")).decode("ascii")


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["plain"] = _plain
    environment.globals["quality_columns"] = list(QUALITY_COLUMNS.values())
    return environment
