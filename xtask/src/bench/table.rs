//! Figures: as a table for people, and as JSON for programs.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::backend::Name;

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What it is, for programs.
    pub id: &'static str,
    /// Under which conditions.
    pub config: String,
    /// What it counts.
    pub unit: &'static str,
    /// What was measured; at least one.
    pub samples: Vec<f64>,
    /// The median must not be above this.
    pub must: Option<f64>,
    /// And would better not be above this.
    pub aim: Option<f64>,
}

impl Row {
    fn sorted(&self) -> Vec<f64> {
        let mut samples = self.samples.clone();
        samples.sort_by(f64::total_cmp);
        samples
    }

    fn min(&self) -> f64 {
        self.sorted().first().copied().unwrap_or(f64::NAN)
    }

    fn max(&self) -> f64 {
        self.sorted().last().copied().unwrap_or(f64::NAN)
    }

    /// The middle one; of an even number, the mean of the two in the middle.
    pub fn median(&self) -> f64 {
        let samples = self.sorted();
        let middle = samples.len() / 2;
        match (samples.get(middle), middle.checked_sub(1).and_then(|before| samples.get(before))) {
            (Some(upper), Some(lower)) if samples.len().is_multiple_of(2) => f64::midpoint(*lower, *upper),
            (Some(sample), _) => *sample,
            (None, _) => f64::NAN,
        }
    }

    fn mean(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a hundred at most")]
        let count = self.samples.len() as f64;
        self.samples.iter().sum::<f64>() / count
    }

    /// Whether the bound is kept. A figure that is none keeps nothing.
    fn is_good(&self) -> bool {
        self.must.is_none_or(|must| self.median() <= must)
    }
}

/// The figures of a backend.
#[derive(Clone, Debug)]
pub struct Table {
    backend: Name,
    rows: Vec<Row>,
}

impl Table {
    /// Without figures.
    pub fn new(backend: Name) -> Self {
        Self { backend, rows: Vec::new() }
    }

    /// Adds a figure.
    pub fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Whether there are figures and all keep their bounds.
    pub fn is_good(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(Row::is_good)
    }

    /// For programs, with the date of today.
    pub fn json(&self) -> String {
        let rows = self.rows.iter().map(|row| {
            json!({
                "id": row.id, "config": row.config, "unit": row.unit, "n": row.samples.len(),
                "min": row.min(), "median": row.median(), "mean": row.mean(), "max": row.max(),
                "must": row.must, "aim": row.aim,
            })
        });
        let days = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400);
        let rows: Vec<Value> = rows.collect();
        let value = json!({"backend": self.backend.to_string(), "date": date(days), "rows": rows});
        format!("{value:#}\n")
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = ["id", "unit", "n", "min", "median", "max", "must", "aim", ""].map(str::to_owned);
        let rows = self.rows.iter().map(|row| {
            let bound = |bound: Option<f64>| bound.map_or_else(String::new, number);
            let verdict = match row.must {
                None => "",
                Some(_) if row.is_good() => "ok",
                Some(_) => "FAILED",
            };
            [
                row.id.to_owned(),
                row.unit.to_owned(),
                row.samples.len().to_string(),
                number(row.min()),
                number(row.median()),
                number(row.max()),
                bound(row.must),
                bound(row.aim),
                verdict.to_owned(),
            ]
        });
        let lines: Vec<_> = std::iter::once(titles).chain(rows).collect();
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
        self.rows.iter().try_for_each(|row| writeln!(f, "{}: {}", row.id, row.config))
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
        Row { id: "a/b", config, unit: "ticks", samples: samples.to_vec(), must, aim: Some(1.0) }
    }

    #[test]
    fn figures_are_summed_up() {
        let row = row(&[3.0, 1.0, 8.0], None);
        assert_eq!((row.min(), row.median(), row.mean(), row.max()), (1.0, 3.0, 4.0, 8.0));
        assert_eq!(self::row(&[4.0, 1.0], None).median(), 2.5);
        assert_eq!(self::row(&[7.0], None).median(), 7.0);
    }

    #[test]
    fn bounds_are_kept_or_not() {
        let table = |rows: Vec<Row>| Table { backend: Name::Bochs, rows };
        assert!(table(vec![row(&[1.0, 1.1, 9.0], Some(1.1)), row(&[5.0], None)]).is_good());
        assert!(!table(vec![row(&[1.0], Some(1.1)), row(&[1.2], Some(1.1))]).is_good());
        assert!(!table(vec![row(&[], Some(1.1))]).is_good());
        assert!(!table(Vec::new()).is_good(), "nothing measured is nothing kept");
    }

    #[test]
    fn programs_find_what_they_are_promised() {
        let mut table = Table::new(Name::Bochs);
        table.push(row(&[2.0], Some(3.0)));
        let value: Value = serde_json::from_str(&table.json()).unwrap();
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
    }

    #[test]
    fn people_see_numbers() {
        assert_eq!(number(1_234_567.0), "1_234_567");
        assert_eq!(number(123.0), "123");
        assert_eq!(number(1.0625), "1.062");
        let mut table = Table::new(Name::Bochs);
        table.push(row(&[2.0], Some(1.0)));
        assert!(table.to_string().contains("FAILED"), "{table}");
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
