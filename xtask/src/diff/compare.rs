//! Goes through two runs side by side up to the first difference that no rule explains.
//!
//! Exits are matched in the guest's order by what happened and where. What the guest computed up to the exit and what was
//! done for it are compared apart, so that a guest that works with different values, where a rule allows it, still has
//! everything compared that the hypervisor does. A register that differed before, and that neither side has changed since,
//! is not told again.

use std::collections::BTreeMap;

use lamina_vmm::trace::{REGISTERS, RIP, Registers};

use super::allowed::{Explains, Rule};
use super::trace::{Step, Trace};

/// How many differences each rule explained, by its name.
pub type Counts = BTreeMap<String, usize>;

/// How many exits in a row are the same where a detour is over.
const MEETING: usize = 8;
/// How long a detour may be, both sides together.
const DETOUR_MAX: usize = 2000;

/// What differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Differs {
    /// Other exits, or exits elsewhere, or one side is at its end.
    Order,
    /// These registers, by their indices in [`REGISTERS`], already when the guest exited: instructions before it.
    Computed(Vec<usize>),
    /// These registers, in what was made of them for the guest.
    Registers(Vec<usize>),
    /// The event that the guest gets.
    Event,
    /// What was written to memory.
    Stores,
    /// How the VM ended.
    End,
}

/// The first difference that nothing explains: the step of each side, `None` behind its last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What differs.
    pub differs: Differs,
    /// Index of the step of each side.
    pub at: [Option<usize>; 2],
}

/// What came out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// How many pairs of records were compared.
    pub compared: usize,
    /// What was allowed.
    pub allowed: Counts,
    /// How many records of each side were on detours, and not compared.
    pub detoured: [usize; 2],
    /// The rule that ended it, if one did.
    pub ended_by: Option<String>,
    /// What was not.
    pub difference: Option<Difference>,
}

/// One side, with where it is.
struct Side<'a> {
    steps: &'a [Step],
    at: usize,
    /// As of the last pair.
    last: Registers,
}

impl<'a> Side<'a> {
    fn new(trace: &'a Trace) -> Self {
        Self { steps: &trace.steps, at: 0, last: [0; REGISTERS.len()] }
    }

    fn step(&self) -> Option<&'a Step> {
        self.steps.get(self.at)
    }

    fn index(&self) -> Option<usize> {
        self.step().map(|_| self.at)
    }

    /// Goes to the last of a row of the same exit at the same instruction; how many it went past.
    fn skip_repeats(&mut self) -> usize {
        let from = self.at;
        while let (Some(this), Some(next)) = (self.steps.get(self.at), self.steps.get(self.at + 1))
            && is_same(this, next)
        {
            self.at += 1;
        }
        self.at - from
    }
}

fn is_same(a: &Step, b: &Step) -> bool {
    (&a.record.what, a.record.rip) == (&b.record.what, b.record.rip)
}

/// The first rule for exits like this one that explains what `fits` says.
fn rule<'a>(rules: &'a [Rule], step: &Step, fits: impl Fn(&Explains) -> bool) -> Option<&'a Rule> {
    rules.iter().find(|rule| fits(&rule.explains) && rule.what.is_match(&step.record.what))
}

/// Compares two runs.
pub fn compare(left: &Trace, right: &Trace, rules: &[Rule]) -> Comparison {
    let mut result = Comparison::default();
    let (mut a, mut b) = (Side::new(left), Side::new(right));
    loop {
        let ends = |step: &Step| rule(rules, step, |explains| matches!(explains, Explains::Ends));
        if let Some(rule) = a.step().and_then(ends).or_else(|| b.step().and_then(ends)) {
            result.ended_by = Some(rule.name.clone());
            return result;
        }
        let place = |step: &Step| rule(rules, step, |explains| matches!(explains, Explains::Place));
        let difference = |differs, a: &Side, b: &Side| Some(Difference { differs, at: [a.index(), b.index()] });
        match (a.step(), b.step()) {
            (None, None) => break,
            (Some(x), Some(y)) if is_same(x, y) || x.record.what == y.record.what && place(x).is_some() => {
                if let Some(rule) = place(x).filter(|_| !is_same(x, y)) {
                    count(&mut result, rule);
                }
                let repeats = rule(rules, x, |explains| matches!(explains, Explains::Repeats));
                if let Some(rule) = repeats
                    && a.skip_repeats() != b.skip_repeats()
                {
                    count(&mut result, rule);
                }
                // A row is one exit: the guest comes to its first, and its last is what the guest goes on with.
                let (first, last) = ([x, y], [a.step().unwrap_or(x), b.step().unwrap_or(y)]);
                if let Some(differs) = pair(first, last, [&a.last, &b.last], rules, &mut result) {
                    result.difference = difference(differs, &a, &b);
                    return result;
                }
                let [x, y] = last;
                result.compared += 1;
                (a.last, b.last) = (x.after, y.after);
                a.at += 1;
                b.at += 1;
            }
            _ => {
                // What was cut goes on where nobody looks.
                if a.step().is_none() && left.cut || b.step().is_none() && right.cut {
                    return result;
                }
                if !skip_one(&mut a, &mut b, rules, &mut result) && !detour(&mut a, &mut b, rules, &mut result) {
                    result.difference = difference(Differs::Order, &a, &b);
                    return result;
                }
            }
        }
    }
    if !(left.cut || right.cut) && left.end != right.end {
        result.difference = Some(Difference { differs: Differs::End, at: [None, None] });
    }
    result
}

fn count(result: &mut Comparison, rule: &Rule) {
    *result.allowed.entry(rule.name.clone()).or_default() += 1;
}

/// Goes past an exit that may be on one side only; that of the side which then is where the other one is, if there is
/// one.
fn skip_one(a: &mut Side, b: &mut Side, rules: &[Rule], result: &mut Comparison) -> bool {
    let find =
        |side: &Side| side.step().and_then(|step| rule(rules, step, |explains| matches!(explains, Explains::OneSided)));
    let (from_a, from_b) = (find(a), find(b));
    let meets =
        |next: Option<&Step>, other: Option<&Step>| next.zip(other).is_some_and(|(next, other)| is_same(next, other));
    let b_meets = meets(b.steps.get(b.at + 1), a.step());
    match (from_a, from_b) {
        (Some(rule), None) => {
            count(result, rule);
            a.at += 1;
        }
        (Some(rule), Some(_)) if !b_meets => {
            count(result, rule);
            a.at += 1;
        }
        (_, Some(rule)) => {
            count(result, rule);
            b.at += 1;
        }
        (None, None) => return false,
    }
    true
}

/// Goes to where both sides do the same for a while, by the shortest way, if one of them is where a detour may begin.
fn detour(a: &mut Side, b: &mut Side, rules: &[Rule], result: &mut Comparison) -> bool {
    let begins = |side: &Side| {
        // The exit from which on they differ is the one before, that both had.
        let steps = [side.at.checked_sub(1).and_then(|before| side.steps.get(before)), side.step()];
        steps.into_iter().flatten().find_map(|step| rule(rules, step, |explains| matches!(explains, Explains::Detour)))
    };
    let Some(rule) = begins(a).or_else(|| begins(b)) else { return false };
    let (left, right) = (&a.steps[a.at..], &b.steps[b.at..]);
    let meets = |i: usize, j: usize| {
        let (left, right) = (left.get(i..i + MEETING), right.get(j..j + MEETING));
        left.zip(right).is_some_and(|(left, right)| left.iter().zip(right).all(|(x, y)| is_same(x, y)))
    };
    let shortest = (1..DETOUR_MAX).find_map(|sum| (0..=sum).map(|i| (i, sum - i)).find(|&(i, j)| meets(i, j)));
    let Some((i, j)) = shortest else { return false };
    count(result, rule);
    result.detoured[0] += i;
    result.detoured[1] += j;
    a.at += i;
    b.at += j;
    true
}

/// Whether `all` has every bit of `bits` of the register `index`.
fn covers(all: &[(usize, u64)], index: usize, bits: u64) -> bool {
    all.iter().any(|(register, mask)| *register == index && bits & !mask == 0)
}

/// Compares two records of the same exit, the `first` and the last of its row each, behind the registers of the pair
/// before; what differs and is not explained.
fn pair(
    first: [&Step; 2],
    [x, y]: [&Step; 2],
    last: [&Registers; 2],
    rules: &[Rule],
    result: &mut Comparison,
) -> Option<Differs> {
    let mut wrong = Vec::new();
    let came_with = first[0].before.into_iter().zip(first[1].before);
    for (index, (left, right)) in came_with.enumerate() {
        let is_old = left == last[0][index] && right == last[1][index];
        if left != right && !is_old && index != RIP {
            let explained =
                |explains: &Explains| matches!(explains, Explains::Computed(all) if covers(all, index, left ^ right));
            match rule(rules, x, explained) {
                Some(rule) => count(result, rule),
                None => wrong.push(index),
            }
        }
    }
    if !wrong.is_empty() {
        return Some(Differs::Computed(wrong));
    }
    for index in 0..REGISTERS.len() {
        // Bits that differed already and that neither side touched are the guest's.
        let kept = !(x.before[index] ^ x.after[index]) & !(y.before[index] ^ y.after[index]);
        // Where the instructions are at different places, so is what comes behind them.
        let is_elsewhere = index == RIP && x.record.rip != y.record.rip;
        let bits = (x.after[index] ^ y.after[index]) & !((x.before[index] ^ y.before[index]) & kept);
        if bits != 0 && !is_elsewhere {
            let explained =
                |explains: &Explains| matches!(explains, Explains::Registers(all) if covers(all, index, bits));
            match rule(rules, x, explained) {
                Some(rule) => count(result, rule),
                None => wrong.push(index),
            }
        }
    }
    if !wrong.is_empty() {
        return Some(Differs::Registers(wrong));
    }
    if x.record.event != y.record.event {
        match rule(rules, x, |explains| matches!(explains, Explains::Event)) {
            Some(rule) => count(result, rule),
            None => return Some(Differs::Event),
        }
    }
    if x.record.stores != y.record.stores {
        match rule(rules, x, |explains| matches!(explains, Explains::Stores)) {
            Some(rule) => count(result, rule),
            None => return Some(Differs::Stores),
        }
    }
    None
}
