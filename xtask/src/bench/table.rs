//! Figures: as a table for people, and as JSON for programs.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::peer::Measured;
use crate::backend::Name;

/// What was measured, summed up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// How many samples.
    pub n: u64,
    /// The least of them.
    pub min: f64,
    /// The middle one; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// Their mean.
    pub mean: f64,
    /// The greatest.
    pub max: f64,
}

impl Figure {
    /// Sums samples up; of none, every figure is NaN.
    pub fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match (sorted.get(middle), middle.checked_sub(1).and_then(|before| sorted.get(before))) {
            (Some(upper), Some(lower)) if sorted.len().is_multiple_of(2) => f64::midpoint(*lower, *upper),
            (Some(sample), _) => *sample,
            (None, _) => f64::NAN,
        };
        #[expect(clippy::cast_precision_loss, reason = "a few thousand at most")]
        let count = sorted.len() as f64;
        Self {
            n: sorted.len() as u64,
            min: sorted.first().copied().unwrap_or(f64::NAN),
            median,
            mean: sorted.iter().sum::<f64>() / count,
            max: sorted.last().copied().unwrap_or(f64::NAN),
        }
    }

    fn json(&self, id: &str, config: &str, row: &Row) -> Value {
        json!({
            "id": id, "config": config, "unit": row.unit, "n": self.n,
            "min": self.min, "median": self.median, "mean": self.mean, "max": self.max,
            "must": Value::Null, "aim": Value::Null,
        })
    }
}

/// A figure of KVM's, with `mitigations=off` and by default.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Beside {
    /// Minima that were measured once.
    Stored([f64; 2]),
    /// Measured in this run.
    Measured([Figure; 2]),
}

impl Beside {
    /// What the table shows: the stored minima, or the medians.
    pub fn shown(&self) -> [f64; 2] {
        match self {
            Beside::Stored(minima) => *minima,
            Beside::Measured(figures) => figures.map(|figure| figure.median),
        }
    }
}

/// One row: a figure of Lamina's, and what stands beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What it is, for programs.
    pub id: &'static str,
    /// Under which conditions.
    pub config: String,
    /// What it counts.
    pub unit: &'static str,
    /// What was measured.
    pub figure: Figure,
    /// The same on the bare machine.
    pub native: Option<Figure>,
    /// The same with every defence against speculation that the processor can execute.
    pub full: Option<Figure>,
    /// The same under KVM.
    pub kvm: Option<Beside>,
    /// The median must not be above this.
    pub must: Option<f64>,
    /// And would better not be above this.
    pub aim: Option<f64>,
    /// What instructions do not show: see [`EVENTS`].
    pub events: Option<[u64; EVENTS.len()]>,
}

impl Row {
    /// A figure with nothing beside it.
    pub const fn new(id: &'static str, unit: &'static str, figure: Figure) -> Self {
        Self {
            id,
            config: String::new(),
            unit,
            figure,
            native: None,
            full: None,
            kvm: None,
            must: None,
            aim: None,
            events: None,
        }
    }

    /// Whether the bound is kept. A figure that is none keeps nothing.
    fn is_good(&self) -> bool {
        self.must.is_none_or(|must| self.figure.median <= must)
    }

    fn verdict(&self) -> &'static str {
        match (self.must, self.aim) {
            (Some(_), _) if !self.is_good() => "FAILED",
            (_, Some(aim)) if self.figure.median <= aim => "as aimed",
            (Some(_), _) => "ok",
            _ => "",
        }
    }

    fn json(&self) -> Vec<Value> {
        let mut own = self.figure.json(self.id, &self.config, self);
        own["must"] = json!(self.must);
        own["aim"] = json!(self.aim);
        own["events"] = self.events.map_or(Value::Null, |events| {
            EVENTS.iter().zip(events).map(|(name, count)| ((*name).to_owned(), json!(count))).collect()
        });
        let mut rows = vec![own];
        if let Some(native) = &self.native {
            rows.push(native.json(&format!("{}/native", self.id), "natively", self));
        }
        if let Some(full) = &self.full {
            rows.push(full.json(&format!("{}/full", self.id), "mitigations = \"full\"", self));
        }
        let id = format!("{}/kvm", self.id);
        for (index, config) in KVM_CONFIGS.into_iter().enumerate() {
            match &self.kvm {
                None => {}
                Some(Beside::Measured(figures)) => rows.push(figures[index].json(&id, config, self)),
                Some(Beside::Stored(minima)) => rows.push(json!({
                    "id": id, "config": format!("{config}; {STORED}"), "unit": self.unit, "n": 1000,
                    "min": minima[index], "median": Value::Null, "mean": Value::Null, "max": Value::Null,
                    "must": Value::Null, "aim": Value::Null,
                })),
            }
        }
        rows
    }
}

/// What is counted beside ticks, once for each operation, by a hypervisor that was built to count.
pub const EVENTS: [&str; 5] = ["vmread", "vmwrite", "rdmsr", "wrmsr", "invalidate"];

/// What the stored figures of KVM were measured with.
const STORED: &str = "minimum, measured 2026-11-23: Linux 6.1.192-2 (linux-image-6.1.0-56-cloud-amd64) in Bochs 2.7, \
                      corei7_skylake_x, 1 CPU, 512 MB";
const KVM_CONFIGS: [&str; 2] = ["KVM, mitigations=off", "KVM, default"];

/// The figures of a backend.
#[derive(Clone, Debug)]
pub struct Table {
    backend: Name,
    rows: Vec<Row>,
    /// What KVM was, where it was measured.
    kvm: Option<String>,
}

impl Table {
    /// Without figures.
    pub fn new(backend: Name) -> Self {
        Self { backend, rows: Vec::new(), kvm: None }
    }

    /// Adds a figure.
    pub fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Puts what was measured of KVM in the place of what was stored.
    pub fn measured(&mut self, kvm: &Measured) {
        for row in &mut self.rows {
            let [off, default] = kvm.figures.each_ref().map(|figures| figures.get(row.id).copied());
            row.kvm = off.zip(default).map(|(off, default)| Beside::Measured([off, default]));
        }
        self.kvm = Some(kvm.what.clone());
    }

    /// Whether there are figures and all keep their bounds.
    pub fn is_good(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(Row::is_good)
    }

    /// For programs, with the date of today.
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().flat_map(Row::json);
        let days = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400);
        let rows: Vec<Value> = rows.collect();
        json!({"backend": self.backend.to_string(), "date": date(days), "kvm": self.kvm, "rows": rows})
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles =
            ["id", "unit", "n", "native", "min", "median", "max", "full", "KVM, off", "KVM", "must", "aim", ""]
                .into_iter()
                .chain(EVENTS)
                .map(str::to_owned)
                .collect::<Vec<_>>();
        let rows = self.rows.iter().map(|row| {
            let cell = |value: Option<f64>| value.map_or_else(String::new, number);
            let events = row.events.map_or_else(Vec::new, |events| events.map(|count| count.to_string()).into());
            let mut cells = vec![
                row.id.to_owned(),
                row.unit.to_owned(),
                row.figure.n.to_string(),
                cell(row.native.map(|native| native.median)),
                number(row.figure.min),
                number(row.figure.median),
                number(row.figure.max),
                cell(row.full.map(|full| full.median)),
                cell(row.kvm.map(|kvm| kvm.shown()[0])),
                cell(row.kvm.map(|kvm| kvm.shown()[1])),
                cell(row.must),
                cell(row.aim),
                row.verdict().to_owned(),
            ];
            cells.extend(events);
            cells.resize(titles.len(), String::new());
            cells
        });
        let lines: Vec<_> = std::iter::once(titles.clone()).chain(rows).collect();
        writeln!(f, "backend: {}", self.backend)?;
        for line in &lines {
            let mut text = String::new();
            for (column, cell) in line.iter().enumerate() {
                let width = lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
                // Words to the left, numbers to the right.
                text += &if column < 2 { format!("{cell:<width$}  ") } else { format!("{cell:>width$}  ") };
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        if self.rows.iter().any(|row| row.kvm.is_some()) {
            writeln!(f, "full: the median with mitigations = \"full\"; all others have the default, \"auto\"")?;
            write!(f, "KVM with mitigations=off and by default: ")?;
            match &self.kvm {
                Some(kvm) => writeln!(f, "medians of this run, {kvm}")?,
                None => writeln!(f, "{STORED}")?,
            }
        }
        let told = self.rows.iter().filter(|row| !row.config.is_empty());
        told.into_iter().try_for_each(|row| writeln!(f, "{}: {}", row.id, row.config))?;
        let bounds = self.rows.iter().filter(|row| row.must.is_some());
        let (good, bad): (Vec<_>, Vec<_>) = bounds.partition(|row| row.is_good());
        writeln!(f, "{} of {} musts are met", good.len(), good.len() + bad.len())?;
        bad.iter().try_for_each(|row| writeln!(f, "not met: {}", row.id))
    }
}

/// A whole number as such, with its thousands apart; others with three places.
fn number(value: f64) -> String {
    if value.fract() != 0.0 || !value.is_finite() {
        return format!("{value:.3}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('_');
        }
        text.push(digit);
    }
    text
}

/// The date, `YYYY-MM-DD`, of a day counted from 1970-01-01, in the Gregorian calendar.
fn date(mut days: u64) -> String {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year:04}-{month:02}-{:02}", days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(samples: &[f64], must: Option<f64>) -> Row {
        let config = "as it is".to_owned();
        Row { config, must, aim: Some(1.0), ..Row::new("a/b", "ticks", Figure::of(samples)) }
    }

    #[test]
    fn figures_are_summed_up() {
        let figure = Figure::of(&[3.0, 1.0, 8.0]);
        assert_eq!(figure, Figure { n: 3, min: 1.0, median: 3.0, mean: 4.0, max: 8.0 });
        assert_eq!(Figure::of(&[4.0, 1.0]).median, 2.5);
        assert_eq!(Figure::of(&[7.0]).median, 7.0);
    }

    #[test]
    fn bounds_are_kept_or_not() {
        let table = |rows: Vec<Row>| Table { rows, ..Table::new(Name::Bochs) };
        assert!(table(vec![row(&[1.0, 1.1, 9.0], Some(1.1)), row(&[5.0], None)]).is_good());
        assert!(!table(vec![row(&[1.0], Some(1.1)), row(&[1.2], Some(1.1))]).is_good());
        assert!(!table(vec![row(&[], Some(1.1))]).is_good());
        assert!(!table(Vec::new()).is_good(), "nothing measured is nothing kept");
    }

    #[test]
    fn programs_find_what_they_are_promised() {
        let mut table = Table::new(Name::Bochs);
        let beside = Row {
            native: Some(Figure::of(&[1.0])),
            full: Some(Figure::of(&[4.0])),
            kvm: Some(Beside::Stored([5.0, 6.0])),
            ..row(&[2.0], Some(3.0))
        };
        table.push(beside);
        let value = table.json();
        assert_eq!(value["backend"], "bochs");
        assert_eq!(value["date"].as_str().map(str::len), Some(10));
        let row = &value["rows"][0];
        assert_eq!(
            (&row["id"], &row["n"], &row["median"], &row["must"]),
            (&json!("a/b"), &json!(1), &json!(2.0), &json!(3.0))
        );
        for key in ["config", "unit", "min", "mean", "max", "aim"] {
            assert!(!row[key].is_null(), "{key}");
        }
        let ids: Vec<_> = value["rows"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["a/b", "a/b/native", "a/b/full", "a/b/kvm", "a/b/kvm"]);
    }

    #[test]
    fn what_was_measured_takes_the_place_of_what_was_stored() {
        let mut table = Table::new(Name::Bochs);
        let stored = Some(Beside::Stored([5.0, 6.0]));
        table.push(Row { kvm: stored, ..Row::new("a", "ticks", Figure::of(&[1.0])) });
        table.push(Row { kvm: stored, ..Row::new("b", "ticks", Figure::of(&[1.0])) });
        assert!(table.to_string().contains(STORED));
        let figures = |value| [("a".to_owned(), Figure::of(&[value]))].into();
        table.measured(&Measured { what: "Linux 1".to_owned(), figures: [figures(7.0), figures(8.0)] });
        assert_eq!(table.rows[0].kvm.map(|kvm| kvm.shown()), Some([7.0, 8.0]));
        assert_eq!(table.rows[1].kvm, None, "a figure that this run has not");
        let text = table.to_string();
        assert!(text.contains("medians of this run, Linux 1") && !text.contains(STORED), "{text}");
        let value = table.json();
        assert_eq!((&value["kvm"], &value["rows"][2]["median"]), (&json!("Linux 1"), &json!(8.0)));
    }

    #[test]
    fn people_see_numbers() {
        assert_eq!(number(1_234_567.0), "1_234_567");
        assert_eq!(number(123.0), "123");
        assert_eq!(number(1.0625), "1.062");
        let mut table = Table::new(Name::Bochs);
        table.push(row(&[2.0], Some(1.0)));
        let text = table.to_string();
        assert!(text.contains("FAILED") && text.contains("0 of 1 musts are met\nnot met: a/b"), "{text}");
    }

    #[test]
    fn days_have_dates() {
        for (days, text) in
            [(0, "1970-01-01"), (59, "1970-03-01"), (789, "1972-02-29"), (11_016, "2000-02-29"), (20_000, "2024-10-04")]
        {
            assert_eq!(date(days), text);
        }
    }
}
