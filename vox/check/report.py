"""The report of `vox check`, for people."""

from dataclasses import asdict
from typing import Any

from vox.check.environment import Machine, Pitfall, describe
from vox.check.plan import Plan
from vox.check.results import Failure, Finding, Findings, Promise, Rate
from vox.progress import format_duration

LABEL_WIDTH, WHAT_WIDTH = 14, 58


def format_machine(machine: Machine, pitfalls: list[Pitfall]) -> str:
    """Write what the machine is, and the known pitfalls that it has."""
    lines = ["this machine", *(f"  {label:<{LABEL_WIDTH}}{text}" for label, text in describe(machine))]
    for pitfall in pitfalls:
        lines += [f"  {'look out':<{LABEL_WIDTH}}{pitfall.what}", f"  {'':<{LABEL_WIDTH}}{pitfall.remedy}"]
    return "\n".join(lines)


def format_finding(finding: Finding) -> str:
    """Write one line: a promise with its bound and its verdict, or a rate."""
    match finding:
        case Promise():
            verdict = "pass" if finding.is_kept else "FAIL"
            bound = f"at most {finding.bound:g}"
            return (
                f"  {finding.name:<5}{finding.what:<{WHAT_WIDTH}}{finding.figure:>10.2g}  "
                f"{bound:<16}{verdict}"
            )
        case Rate():
            share = "" if finding.share is None else f"  {finding.share:.0%} of the matrix rate"
            note = f"  ({finding.note})" if finding.note else ""
            what = f"{finding.what:<{5 + WHAT_WIDTH}}"
            return f"  {what}{format_figure(finding.value):>10} {finding.unit}{share}{note}"
        case Failure():
            return f"  {'':<5}{finding.title}: {finding.error}  FAIL"


def to_tree(findings: Findings, plan: Plan | None) -> dict[str, Any]:
    """Return everything found as a tree of plain values."""
    promises = [asdict(promise) | {"is_kept": promise.is_kept} for promise in findings.promises]
    whole = None
    if plan is not None:
        whole = asdict(plan) | {"hours": plan.hours, "disk_gb": plan.disk_gb, "cost": plan.cost}
    return {
        "is_good": findings.is_good,
        "promises": promises,
        "rates": [asdict(rate) for rate in findings.rates],
        "failures": [asdict(failure) for failure in findings.failures],
        "step_seconds": findings.seconds,
        "plan": whole,
    }


def format_figure(value: float) -> str:
    """Write a figure with three digits, or all digits before its point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def format_plan(plan: Plan) -> str:
    """Write how long a corpus takes, part by part."""
    lines = [f"a corpus of {plan.corpus_hours:g} hours takes"]
    for row in plan.rows:
        duration = format_duration(3600 * row.hours)
        lines.append(f"  {row.part:<40}{duration:>12}{row.disk_gb:>10.1f} GB  as fast as {row.limit}")
    cost = "" if plan.cost is None else f"  for {plan.cost:,.2f}"
    lines.append(f"  {'in all':<40}{format_duration(3600 * plan.hours):>12}{plan.disk_gb:>10.1f} GB{cost}")
    return "\n".join(lines)


def format_verdict(findings: Findings, seconds: float) -> str:
    """Write the last line."""
    broken = sum(not promise.is_kept for promise in findings.promises)
    failed = len(findings.failures)
    if findings.is_good:
        verdict = f"all {len(findings.promises)} checks passed"
    else:
        verdict = f"{broken} of {len(findings.promises)} checks FAILED"
        verdict += f", {failed} could not be run" if failed else ""
    return f"{verdict}, in {format_duration(seconds)}"
