//! What may be expected of a case.

/// What must happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The guest program comes back and says this; one of several, with `or` in between.
    Sees(&'static str),
    /// The VM ends with a reason that begins so (a regular expression).
    Stops(&'static str),
    /// The VM starts again.
    Resets,
    /// The VM starts again so often that it is stopped.
    Loops,
    /// It keeps the processor until it is stopped from the console.
    RunsOn,
}

/// One case.
#[derive(Debug)]
pub struct Case {
    /// Its name, the guest program's too.
    pub name: &'static str,
    /// What must happen.
    pub expected: Expected,
}

/// Cases of one kind.
#[derive(Debug)]
pub struct Chapter {
    /// Its name here.
    pub id: &'static str,
    /// Its heading.
    pub title: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// Its cases.
    pub cases: &'static [Case],
}
