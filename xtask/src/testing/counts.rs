//! Counts what test programs say of themselves.

/// How many tests ended how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed, and programs that ended without a word.
    pub failed: u64,
    /// Those that did not run.
    pub skipped: Vec<Skipped>,
    /// The kinds that were seen, in order, each with what it counts; tests without a kind are not here.
    kinds: Vec<(String, Counts)>,
}

/// A test that did not run, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its name, with its kind where it has one.
    pub name: String,
    /// Why, where that is said.
    pub reason: Option<String>,
}

/// How one test ended.
#[derive(Clone, Copy)]
enum End {
    Passed,
    Failed,
    Skipped,
}

impl Counts {
    /// Takes in one line of a test program's output: `test NAME ... ok`, or `skipped: NAME: REASON`, with `[KIND]` before
    /// the name where it has one.
    pub fn line_of_output(&mut self, line: &str) {
        let left_out = line.strip_prefix("skipped: ").and_then(|rest| rest.split_once(": "));
        let (name, end, reason) = match (left_out, result(line)) {
            (Some((name, reason)), _) => (name, End::Skipped, Some(reason)),
            (None, Some((name, end))) => (name, end, None),
            (None, None) => return,
        };
        let kind = name.strip_prefix('[').and_then(|name| name.split_once("] "));
        match kind {
            Some((kind, plain)) => {
                let plain = plain.trim();
                self.count(format!("{plain} ({})", kind.trim()), end, reason);
                self.kind(kind.trim()).count(plain.to_owned(), end, reason);
            }
            None => self.count(name.to_owned(), end, reason),
        }
    }

    fn count(&mut self, name: String, end: End, reason: Option<&str>) {
        match end {
            End::Passed => self.passed += 1,
            End::Failed => self.failed += 1,
            End::Skipped => self.skipped.push(Skipped { name, reason: reason.map(str::to_owned) }),
        }
    }

    fn kind(&mut self, name: &str) -> &mut Counts {
        let found = self.kinds.iter().position(|(kind, _)| kind == name);
        let index = found.unwrap_or_else(|| {
            self.kinds.push((name.to_owned(), Counts::default()));
            self.kinds.len() - 1
        });
        &mut self.kinds[index].1
    }

    /// The kinds, in the order in which they were seen.
    pub fn by_kind(&self) -> &[(String, Counts)] {
        &self.kinds
    }

    /// The counts of both; the kinds are left out.
    pub fn plus(&self, other: &Counts) -> Counts {
        Counts {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: [&self.skipped[..], &other.skipped[..]].concat(),
            kinds: Vec::new(),
        }
    }

    /// No test was found.
    pub fn is_nothing(&self) -> bool {
        self.passed == 0 && self.failed == 0 && self.skipped.is_empty()
    }

    /// The line that scripts rely on.
    pub fn line(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped.len())
    }
}

/// The name and the end of the test that the line is about.
fn result(line: &str) -> Option<(&str, End)> {
    let (name, end) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let end = match end.trim() {
        "ok" => End::Passed,
        "FAILED" => End::Failed,
        end if end == "ignored" || end.starts_with("ignored,") => End::Skipped,
        _ => return None,
    };
    Some((name.trim(), end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(lines: &[&str]) -> Counts {
        let mut counts = Counts::default();
        lines.iter().for_each(|line| counts.line_of_output(line));
        counts
    }

    fn names(counts: &Counts) -> Vec<&str> {
        counts.skipped.iter().map(|skipped| skipped.name.as_str()).collect()
    }

    #[test]
    fn parts_that_are_left_out_count_with_their_reason() {
        let counts = counts(&["test [tcg] checker ... ok", "skipped: [tcg] checker/a: it cannot: not here"]);
        let reason = Some("it cannot: not here".to_owned());
        assert_eq!(counts.skipped, [Skipped { name: "checker/a (tcg)".to_owned(), reason }]);
        assert_eq!(counts.line(), "1 passed, 0 failed, 1 skipped");
        assert_eq!(counts.by_kind()[0].1.line(), "1 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn libtests_lines_are_counted() {
        let counts = counts(&[
            "running 5 tests",
            "test bus::tests::open_bus ... ok",
            "test src/session.rs - session (line 3) - compile ... ok",
            "test a::b ... FAILED",
            "test c ... ignored",
            "test d ... ignored, needs patience",
            "test e - should panic ... ok",
            "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out",
        ]);
        assert_eq!((counts.passed, counts.failed), (3, 1));
        assert_eq!(names(&counts), ["c", "d"]);
        assert_eq!(counts.line(), "3 passed, 1 failed, 2 skipped");
        assert!(counts.by_kind().is_empty());
    }

    #[test]
    fn kinds_are_counted_apart_and_together() {
        let counts = counts(&[
            "test [host]  refused_on_host ... ok",
            "test [bochs] hello           ... ok",
            "test [bochs] demo            ... FAILED",
            "test [bochs] slow            ... ignored",
        ]);
        assert_eq!(counts.line(), "2 passed, 1 failed, 1 skipped");
        assert_eq!(names(&counts), ["slow (bochs)"]);
        let kinds: Vec<_> =
            counts.by_kind().iter().map(|(kind, counts)| format!("{kind}: {}", counts.line())).collect();
        assert_eq!(kinds, ["host: 1 passed, 0 failed, 0 skipped", "bochs: 1 passed, 1 failed, 1 skipped"]);
    }

    #[test]
    fn sums_and_nothing() {
        assert!(Counts::default().is_nothing());
        let one = counts(&["test a ... ok"]);
        let other = counts(&["test b ... ignored"]);
        assert_eq!(one.plus(&other).line(), "1 passed, 0 failed, 1 skipped");
        assert!(!other.is_nothing());
    }

    #[test]
    fn what_a_test_prints_is_not_counted() {
        assert!(counts(&["a test b ... ok", "test of patience", "test x ... maybe"]).is_nothing());
    }
}
