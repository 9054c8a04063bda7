"""Before a job: a few of its optimizer steps are measured and thrown away."""

from tunesmith.phases.child import Assignment
from tunesmith.phases.messages import Report
from tunesmith.phases.train import begin
from tunesmith.tuning.rehearsal import rehearse


def run(assignment: Assignment, report: Report) -> None:
    report(rehearse(begin(assignment)))
