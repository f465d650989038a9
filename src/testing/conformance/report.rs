//! What came of a run.

use std::{fmt, time::Duration};

/// What came of a run of the suite, case by case in the order in which they ran.
#[derive(Debug, Clone)]
#[must_use = "a report that is not looked at hides failures; call `assert`"]
pub struct Report {
    cases: Vec<CaseReport>,
}

/// What came of one case.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CaseReport {
    /// The case.
    pub name: &'static str,
    /// What it is about: an invariant of [`idempotency`](crate::idempotency), or a number in the
    /// contract of [`IdempotencyStore`](crate::IdempotencyStore) or
    /// [`Outbox`](crate::outbox::Outbox), or a method.
    pub cites: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// How long it took.
    pub elapsed: Duration,
}

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// What it must was done.
    Passed,
    /// It was not: what was expected, and what came.
    Failed(String),
    /// The case does not apply: why not.
    NotApplicable(String),
}

impl Report {
    pub(super) fn new(cases: Vec<CaseReport>) -> Self {
        Self { cases }
    }

    /// All cases.
    pub fn cases(&self) -> &[CaseReport] {
        &self.cases
    }

    /// The names of the cases that failed.
    pub fn failed(&self) -> impl Iterator<Item = &'static str> {
        self.cases.iter().filter(|case| matches!(case.verdict, Verdict::Failed(_))).map(|case| case.name)
    }

    /// Whether no case failed and at least one passed.
    pub fn is_passed(&self) -> bool {
        self.failed().next().is_none() && self.count(|verdict| *verdict == Verdict::Passed) > 0
    }

    /// Accepts what was tried.
    ///
    /// # Panics
    ///
    /// With the whole table, if a case failed or none passed.
    #[track_caller]
    pub fn assert(&self) {
        assert!(self.is_passed(), "what was tried does not conform\n{self}");
    }

    fn count(&self, of: impl Fn(&Verdict) -> bool) -> usize {
        self.cases.iter().filter(|case| of(&case.verdict)).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for CaseReport { name, cites, verdict, elapsed } in &self.cases {
            let (word, text) = match verdict {
                Verdict::Passed => ("passed", ""),
                Verdict::Failed(text) => ("FAILED", text.as_str()),
                Verdict::NotApplicable(reason) => ("n/a", reason.as_str()),
            };
            let line = format!("{word:<6}  {name:<48}  {cites:<14}  {:>6} ms  {text}", elapsed.as_millis());
            writeln!(f, "{}", line.trim_end())?;
        }
        let failed = self.count(|verdict| matches!(verdict, Verdict::Failed(_)));
        let passed = self.count(|verdict| *verdict == Verdict::Passed);
        let not_applicable = self.cases.len() - failed - passed;
        write!(f, "{passed} passed, {failed} failed, {not_applicable} not applicable")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(verdicts: &[Verdict]) -> Report {
        let case = |verdict: &Verdict| CaseReport {
            name: "a_case",
            cites: "I1",
            verdict: verdict.clone(),
            elapsed: Duration::ZERO,
        };
        Report::new(verdicts.iter().map(case).collect())
    }

    #[test]
    fn a_report_passes_if_something_passed_and_nothing_failed() {
        let failed = Verdict::Failed("expected one; came two".into());
        let not_applicable = Verdict::NotApplicable("not for it".into());
        assert!(!report(&[]).is_passed());
        assert!(!report(std::slice::from_ref(&not_applicable)).is_passed());
        assert!(!report(&[Verdict::Passed, failed.clone()]).is_passed());
        assert!(report(&[Verdict::Passed, not_applicable]).is_passed());
        let text = report(&[Verdict::Passed, failed]).to_string();
        assert!(text.contains("expected one; came two"), "{text}");
        assert!(text.ends_with("1 passed, 1 failed, 0 not applicable"), "{text}");
    }

    #[test]
    #[should_panic(expected = "0 passed, 0 failed, 0 not applicable")]
    fn a_report_of_nothing_is_no_success() {
        report(&[]).assert();
    }
}
