//! The figures as a picture: what each kind of exit costs under Lamina and under KVM, as SVG.
//!
//! Owns how it looks. It is made from what `--json` writes, of this run or of an earlier one.

use anyhow::{Context, Result, ensure};
use plotters::prelude::*;
use serde_json::Value;

/// Unit: pixels.
const WIDTH: u32 = 900;
const ROW: u32 = 42;
/// Above and below the rows: title and legend, axis.
const ABOVE: u32 = 76;
const BELOW: u32 = 56;
/// Bars of a row, from the top: what they are, their colour, and what is free above and below them in the row.
const BARS: [(&str, RGBColor, u32, u32); 3] = [
    ("Lamina", RGBColor(0x1b, 0x7f, 0x79), 5, 25),
    ("KVM, mitigations=off", RGBColor(0xf2, 0xb1, 0x34), 16, 15),
    ("KVM, default", RGBColor(0xc8, 0x55, 0x3d), 26, 5),
];
const FONT: &str = "sans-serif";

/// A row: its name, Lamina's figure, KVM's two.
type Row = (String, [f64; 3]);

/// The rows that have figures of KVM. The median, or what is stored, the minimum.
fn rows(figures: &Value) -> Result<Vec<Row>> {
    let all = figures.get("rows").and_then(Value::as_array).context("it has no `rows`")?;
    let number = |row: &Value| {
        let value = row.get("median").and_then(Value::as_f64).or_else(|| row.get("min").and_then(Value::as_f64));
        value.filter(|value| *value >= 1.0)
    };
    let ticks = all.iter().filter(|row| row.get("unit").and_then(Value::as_str) == Some("ticks"));
    let rows: Vec<Row> = ticks
        .filter_map(|row| {
            let id = id(row)?;
            let beside = format!("{id}/kvm");
            let mut kvm = all.iter().filter(|row| self::id(row) == Some(&beside));
            Some((id.to_owned(), [number(row)?, number(kvm.next()?)?, number(kvm.next()?)?]))
        })
        // What is no exit at all, and what an exit is not to be compared with.
        .filter(|(id, _)| !matches!(id.as_str(), "empty" | "nop/100" | "clear/page"))
        .collect();
    ensure!(!rows.is_empty(), "it has no figures with KVM's beside them");
    Ok(rows)
}

fn id(row: &Value) -> Option<&str> {
    row.get("id").and_then(Value::as_str)
}

/// Draws `figures`, as `--json` writes them.
///
/// # Errors
/// They are not of that form, or there is nothing to draw.
pub fn svg(figures: &Value) -> Result<String> {
    let rows = rows(figures)?;
    let count = rows.len();
    let height = ABOVE + ROW * u32::try_from(count)? + BELOW;
    let most = rows.iter().flat_map(|(_, values)| *values).fold(10.0, f64::max);
    let date = figures.get("date").and_then(Value::as_str).unwrap_or("an unknown day");
    let mut text = String::new();
    draw(&mut text, &rows, height, most, date).map_err(|error| anyhow::anyhow!("cannot be drawn: {error}"))?;
    Ok(text)
}

fn draw(text: &mut String, rows: &[Row], height: u32, most: f64, date: &str) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(text, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("What an exit costs: instructions, logarithmic ({date})");
    root.draw(&Text::new(title, (16, 14), (FONT, 20)))?;
    for (index, (name, colour, ..)) in (0..).zip(BARS) {
        let x = 16 + 210 * index;
        root.draw(&Rectangle::new([(x, 46), (x + 14, 60)], colour.filled()))?;
        root.draw(&Text::new(name, (x + 20, 46), (FONT, 15)))?;
    }
    let mut chart = ChartBuilder::on(&root)
        .margin_top(ABOVE)
        .margin_right(70)
        .x_label_area_size(BELOW)
        .y_label_area_size(150)
        .build_cartesian_2d((10.0..most).log_scale(), (0..rows.len()).into_segmented())?;
    // The first row on top.
    let name = |at: &SegmentValue<usize>| match at {
        SegmentValue::CenterOf(index) => rows.iter().rev().nth(*index).map_or_else(String::new, |(id, _)| id.clone()),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(rows.len())
        .y_label_formatter(&name)
        .x_label_formatter(&|value| format!("{value:.0}"))
        .label_style((FONT, 15))
        .draw()?;
    for (index, (_, values)) in rows.iter().rev().enumerate() {
        for (value, (_, colour, above, below)) in values.iter().zip(BARS) {
            let corners = [(10.0, SegmentValue::Exact(index + 1)), (*value, SegmentValue::Exact(index))];
            let mut bar = Rectangle::new(corners, colour.filled());
            bar.set_margin(above, below, 0, 0);
            chart.draw_series([bar])?;
            let told = EmptyElement::at((*value, SegmentValue::Exact(index + 1)))
                + Text::new(format!("{value:.0}"), (4, i32::try_from(above)? - 1), (FONT, 11));
            chart.draw_series([told])?;
        }
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn figures() -> Value {
        let row = |id: &str, value: Value| json!({"id": id, "unit": "ticks", "median": value, "min": 7});
        json!({"date": "2026-01-02", "rows": [
            row("cpuid/0", json!(150)), row("cpuid/0/native", json!(1)), row("cpuid/0/kvm", json!(970)),
            row("cpuid/0/kvm", Value::Null), row("empty", json!(4)), row("empty/kvm", json!(4)),
            row("empty/kvm", json!(4)), row("clear/page", json!(496)),
        ]})
    }

    #[test]
    fn rows_are_those_with_kvm_beside() {
        assert_eq!(rows(&figures()).unwrap(), [("cpuid/0".to_owned(), [150.0, 970.0, 7.0])]);
        for wrong in [json!({}), json!({"rows": []}), json!({"rows": [{"id": "a", "unit": "ticks", "median": 1}]})] {
            assert!(svg(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_picture_names_its_rows_and_their_figures() {
        let svg = svg(&figures()).unwrap();
        for part in ["<svg", "cpuid/0", "150", "970", "KVM, default", "2026-01-02"] {
            assert!(svg.contains(part), "{part} is not in {svg}");
        }
    }
}
