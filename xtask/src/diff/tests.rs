//! Recorded runs with differences planted in them.

use lamina_vmm::trace::{Code, RIP, Record, Store};

use super::allowed::{Allowed, Rule};
use super::compare::{Comparison, Differs, compare};
use super::show;
use super::trace::{Step, Trace};

/// A run as the machine prints it: `Hello` and the end.
const RUN: &str = "\
[lamina] trace g cpuid:0 1000 code64=0fa2 rax=0 rip=1000 +rax=16 +rbx=756e6547 +rip=1002
[lamina] trace g in8:3fd 1002 code64=ec rdx=3fd +rax=60 +rip=1003
[lamina] trace g out8:3f8 1003 code64=ee rax=48 rflags=46 +rip=1004
[lamina] trace g rdmsr:dead 1004 code64=0f32 event=exception:d/0
[lamina] trace g ins8:1f0 1010 code64=6c store=2000+1:af63dc4c8601ec8c rip=1010 +rip=1011
[lamina] trace g hlt 1011 code64=f4 +rip=1012
[lamina] g stopped: halted for good (status 0)";

fn read(text: &str) -> Trace {
    Trace::read("g", text.lines()).unwrap()
}

fn against(text: &str, rules: &str) -> Comparison {
    let rules: Vec<Rule> = Allowed::parse(rules).unwrap().rules;
    compare(&read(RUN), &read(text), &rules)
}

/// The difference that `text` has, without rules.
fn differs(text: &str) -> (Differs, [Option<usize>; 2]) {
    let difference = against(text, "").difference.expect("a difference");
    (difference.differs, difference.at)
}

fn rule(what: &str, rest: &str) -> String {
    format!("[[allow]]\nname = \"n\"\nwhat = \"{what}\"\nreason = \"r\"\n{rest}\n")
}

#[test]
fn the_same_is_the_same() {
    let result = against(RUN, "");
    assert_eq!((result.compared, result.difference, result.allowed.len()), (6, None, 0));
}

#[test]
fn every_kind_of_planted_difference_is_found_where_it_is() {
    let plant = |from: &str, to: &str| {
        assert!(RUN.contains(from));
        differs(&RUN.replacen(from, to, 1))
    };
    let both = |at| [Some(at), Some(at)];
    assert_eq!(plant("rax=60", "rax=61"), (Differs::Registers(vec![0]), both(1)));
    assert_eq!(plant("rip=1004", "rip=1005"), (Differs::Registers(vec![RIP]), both(2)));
    assert_eq!(plant("rdx=3fd", "rdx=3fe"), (Differs::Computed(vec![2]), both(1)));
    assert_eq!(plant("rflags=46", "rflags=47"), (Differs::Computed(vec![17]), both(2)));
    assert_eq!(plant("exception:d/0", "exception:6"), (Differs::Event, both(3)));
    assert_eq!(plant(" event=exception:d/0", ""), (Differs::Event, both(3)));
    assert_eq!(plant("store=2000", "store=2001"), (Differs::Stores, both(4)));
    assert_eq!(plant("af63dc4c8601ec8c", "1"), (Differs::Stores, both(4)));
    assert_eq!(plant("hlt 1011", "hlt 1013"), (Differs::Order, both(5)));
    assert_eq!(plant("out8:3f8", "out8:3f9"), (Differs::Order, both(2)));
    assert_eq!(plant("status 0", "status 1"), (Differs::End, [None, None]));
    let without_last: Vec<_> = RUN.lines().filter(|line| !line.contains("hlt")).collect();
    assert_eq!(differs(&without_last.join("\n")), (Differs::Order, [Some(5), None]));
}

#[test]
fn a_rule_explains_what_it_names_and_nothing_else() {
    let other = RUN.replacen("rbx=756e6547", "rbx=68747541", 1);
    let cpuid = rule("^cpuid:", "explains = \"registers\"\nregisters = [\"rbx\"]");
    let result = against(&other, &cpuid);
    // It stays in RBX to the end, and is told once.
    assert_eq!((result.difference, result.allowed.get("n"), result.compared), (None, Some(&1), 6));
    for wrong in [
        rule("^cpuid:", "explains = \"registers\"\nregisters = [\"rcx\"]"),
        rule("^hlt", "explains = \"registers\"\nregisters = [\"rbx\"]"),
        rule("^cpuid:", "explains = \"registers\"\nregisters = [\"rbx:0xff\"]"),
        rule("^cpuid:", "explains = \"event\""),
    ] {
        assert!(against(&other, &wrong).difference.is_some(), "{wrong}");
    }
    let computed = other.replacen("rdx=3fd", "rdx=3fd rbx=68747542", 1);
    assert_eq!(against(&computed, &cpuid).difference.map(|found| found.differs), Some(Differs::Computed(vec![3])));
    let rules = format!("{cpuid}{}", rule(".", "explains = \"computed\"\nregisters = [\"rbx\"]"));
    assert_eq!(against(&computed, &rules).difference, None);
    // What is done for the guest is compared all the same, down to the bits that differed already.
    for (from, to) in [("rdx=3fd +", "rdx=3fd +rbx=68747549 +"), ("+rax=60", "+rax=61")] {
        let result =
            against(&computed.replacen("rdx=3fd rbx=68747542 +", "rdx=3fd +", 1).replacen(from, to, 1), &rules);
        assert!(matches!(result.difference.map(|found| found.differs), Some(Differs::Registers(_))), "{to}");
    }
}

#[test]
fn exits_of_one_side_and_repeated_ones_need_a_rule_too() {
    let line = "[lamina] trace g in8:3fd 1002 code64=ec rdx=3fd +rax=60 +rip=1003\n";
    let poll = RUN.replacen(line, &format!("{}{line}", line.replace("+rax=60", "+rax=0").replace("1003", "1002")), 1);
    assert!(against(&poll, "").difference.is_some());
    let result = against(&poll, &rule("^in8:3fd$", "explains = \"repeats\""));
    assert_eq!((result.difference, result.allowed.get("n")), (None, Some(&1)));

    let extra = RUN.replacen(line, &format!("[lamina] trace g control-register 1001 rip=1002\n{line}"), 1);
    assert_eq!(differs(&extra).0, Differs::Order);
    let one_sided = rule("^control-register$", "explains = \"one-sided\"");
    let result = against(&extra, &one_sided);
    assert_eq!((result.difference, result.allowed.get("n")), (None, Some(&1)));
    // What it did to the guest is compared at the next exit.
    let harm = extra.replacen("control-register 1001 rip=1002", "control-register 1001 rip=1002 +rsi=1", 1);
    assert!(against(&harm, &one_sided).difference.is_some());
    let both = compare(&read(&extra), &read(RUN), &Allowed::parse(&one_sided).unwrap().rules);
    assert_eq!(both.difference, None);
}

#[test]
fn another_place_and_another_way_need_rules_and_are_told() {
    let other = RUN.replacen("hlt 1011 code64=f4 +rip=1012", "hlt 2011 code64=f4 rip=2011 +rip=2012", 1);
    assert!(against(&other, "").difference.is_some());
    let result = against(&other, &rule("^hlt$", "explains = \"place\""));
    assert_eq!((result.difference, result.allowed.get("n")), (None, Some(&1)));

    let same: Vec<_> = (0..8).map(|at| format!("[lamina] trace g hlt {at:x}")).collect();
    let run = |way: &[&str]| {
        let way = way.iter().map(|what| format!("[lamina] trace g {what} 500"));
        let first = "[lamina] trace g cpuid:7 400".to_owned();
        read(&std::iter::once(first).chain(way).chain(same.clone()).collect::<Vec<_>>().join("\n"))
    };
    let (left, right) = (run(&["xsetbv", "in8:1"]), run(&["wrmsr:1"]));
    let rules = |what| Allowed::parse(&rule(what, "explains = \"detour\"")).unwrap().rules;
    assert!(compare(&left, &right, &rules("^in8:2$")).difference.is_some());
    let result = compare(&left, &right, &rules("^cpuid:7$"));
    assert_eq!((result.difference, result.detoured, result.compared), (None, [2, 1], 9));
}

#[test]
fn time_ends_a_comparison_and_says_so() {
    let other = RUN.replacen("status 0", "status 1", 1).replacen("rax=48", "rax=49", 1);
    let result = against(&other, &rule("^out8:", "explains = \"ends\""));
    assert_eq!((result.compared, result.ended_by.as_deref(), result.difference), (2, Some("n"), None));
    let cut = RUN.lines().take(2).chain(["[lamina] trace g end"]).collect::<Vec<_>>().join("\n");
    let result = against(&cut, "");
    assert_eq!((result.compared, result.difference), (2, None));
}

#[test]
fn a_difference_is_shown_with_its_instruction() {
    let (left, right) = (read(RUN), read(&RUN.replacen("rax=60", "rax=61", 1)));
    let difference = compare(&left, &right, &[]).difference.unwrap();
    let text = show::difference(["bochs", "tcg"], [&left, &right], &difference);
    for part in ["record 1 of bochs and record 1 of tcg", "in al,dx", "0x60", "0x61", "cpuid"] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let mut trace = Trace::default();
    let code = Some(Code { bits: 16, bytes: vec![0x66, 0x0f, 0x22, 0xc0] });
    let record = Record { rip: 5, code, stores: vec![Store { gpa: 1, length: 1, digest: 1 }], ..Record::default() };
    trace.push(Step { record, before: [0; 23], after: [0; 23] });
    assert_eq!(show::instruction(&trace, 6), "(instruction not recorded)");
    assert!(show::instruction(&trace, 5).contains("cr0"), "{}", show::instruction(&trace, 5));
}
