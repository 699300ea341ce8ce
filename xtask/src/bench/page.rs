//! The figures as a page of the guide: what `--json` writes, as Markdown.
//!
//! Owns how it looks, and says with what the figures were measured. Never measures.

use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// In front of the table.
const ABOVE: &str = "\
# What it costs

`cargo xtask bench --page FILE` has written this page; `cargo xtask bench exits` measures anew. On Bochs with one processor a
tick of the time-stamp counter is a retired instruction, so the figures are path lengths, and repeatable: medians of
Lamina's, minima of KVM's where those are stored. What a real processor takes beside them, for reading and writing its
structures and MSRs, is counted in the last five columns. `full` has all defences against speculation, needed or not.
[testing.md](testing.md#benchmarks) says what each row is, and [hosts.md](hosts.md) what the backends are.

";

/// Counts of an operation's, as the figures have them.
const EVENTS: [&str; 5] = ["vmread", "vmwrite", "rdmsr", "wrmsr", "invalidate"];

/// A page with the table of `figures`, as `--json` writes them, and with `plot` above it: the picture's place relative to
/// the page's.
///
/// # Errors
/// They are not of that form, or there are none.
pub fn markdown(figures: &Value, plot: Option<&str>) -> Result<String> {
    let rows = figures.get("rows").and_then(Value::as_array).context("it has no `rows`")?;
    let told = |name: &str| figures.get(name).and_then(Value::as_str).with_context(|| format!("it has no `{name}`"));
    let mut page = ABOVE.to_owned();
    writeln!(page, "Measured {} on {}.", told("date")?, told("backend")?)?;
    let mut configs: Vec<&str> =
        rows.iter().filter(|row| id(row).ends_with(KVM)).filter_map(|row| text(row, "config")).collect();
    configs.dedup();
    configs.sort_unstable();
    configs.dedup();
    for config in configs {
        writeln!(page, "{config}.")?;
    }
    if let Some(plot) = plot {
        writeln!(page, "\n![What exits cost under Lamina and under KVM]({plot})")?;
    }
    writeln!(page, "\n| | unit | natively | Lamina | full | KVM, off | KVM | must | aim | {} |", EVENTS.join(" | "))?;
    writeln!(page, "|---|---|{}", "---:|".repeat(7 + EVENTS.len()))?;
    let mut count = 0;
    for row in rows.iter().filter(|row| ![KVM, NATIVE, FULL].iter().any(|beside| id(row).ends_with(beside))) {
        let name = id(row);
        let beside = |suffix: &str| {
            let id = format!("{name}{suffix}");
            rows.iter().filter(move |row| self::id(row) == id).map(value)
        };
        let [native, full] = [NATIVE, FULL].map(|suffix| beside(suffix).next().unwrap_or_default());
        let mut kvm = beside(KVM);
        let kvm = [kvm.next().unwrap_or_default(), kvm.next().unwrap_or_default()];
        let bounds = ["must", "aim"].map(|bound| number(row, bound));
        let events = EVENTS.map(|event| row.get("events").map_or_else(String::new, |events| number(events, event)));
        let cells = [native, value(row), full].into_iter().chain(kvm).chain(bounds).chain(events);
        let unit = text(row, "unit").unwrap_or_default();
        writeln!(page, "| {name} | {unit} | {} |", cells.collect::<Vec<_>>().join(" | "))?;
        count += 1;
    }
    ensure!(count > 0, "it has no figures");
    Ok(page)
}

/// Behind the names of figures that stand beside one of Lamina's.
const KVM: &str = "/kvm";
const NATIVE: &str = "/native";
const FULL: &str = "/full";

fn text<'a>(row: &'a Value, name: &str) -> Option<&'a str> {
    row.get(name).and_then(Value::as_str)
}

fn id(row: &Value) -> &str {
    text(row, "id").unwrap_or_default()
}

/// The median, or what is stored, the minimum.
fn value(row: &Value) -> String {
    let median = number(row, "median");
    if median.is_empty() { number(row, "min") } else { median }
}

/// A number as the table shows it; empty where there is none.
fn number(row: &Value, name: &str) -> String {
    match row.get(name).and_then(Value::as_f64) {
        Some(number) if number.fract() == 0.0 || number >= 1000.0 => format!("{number:.0}"),
        Some(number) => format!("{number:.3}"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_has_what_stands_beside_it_and_the_page_what_it_was_measured_with() {
        let events = json!({"vmread": 5, "vmwrite": 2, "rdmsr": 0, "wrmsr": 0, "invalidate": 1});
        let row = |id: &str, median: Value, config: &str| json!({"id": id, "unit": "ticks", "median": median, "min": 970, "must": null, "aim": null, "config": config});
        let mut own = row("cpuid/0", json!(140), "");
        own["events"] = events;
        own["must"] = json!(150);
        let figures = json!({"date": "2026-01-02", "backend": "bochs", "rows": [
            own, row("cpuid/0/native", json!(1), "natively"), row("cpuid/0/kvm", Value::Null, "KVM, as it was"),
            row("cpuid/0/kvm", json!(1066.5), "KVM, as it was"), row("cpuid/0/full", json!(240), ""), row("empty", json!(0.25), ""),
        ]});
        let page = markdown(&figures, Some("../a.svg")).unwrap();
        for part in [
            "Measured 2026-01-02 on bochs.\nKVM, as it was.\n\n![",
            "](../a.svg)\n",
            "\n| cpuid/0 | ticks | 1 | 140 | 240 | 970 | 1066 | 150 |  | 5 | 2 | 0 | 0 | 1 |\n",
            "\n| empty | ticks |  | 0.250 |  |  |  |  |  |  |  |  |  |  |\n",
        ] {
            assert!(page.contains(part), "{part:?} is not in {page}");
        }
    }

    #[test]
    fn what_are_no_figures_is_refused() {
        for wrong in [json!({}), json!({"date": "a", "backend": "b", "rows": []}), json!({"rows": [{"id": "a"}]})] {
            assert!(markdown(&wrong, None).is_err(), "{wrong}");
        }
    }
}
