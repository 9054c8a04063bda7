"""Before a job: which learning rate to begin with. Its steps are thrown away."""

from dataclasses import asdict

from tunesmith.phases.child import Assignment
from tunesmith.phases.messages import RatesTried, Report
from tunesmith.phases.train import begin
from tunesmith.tuning.range_test import suggested, tried


def run(assignment: Assignment, report: Report) -> None:
    found = tried(begin(assignment))
    report(RatesTried([asdict(t) for t in found], suggested(found)))
