//! What grows and what does not: panels over time, each with the line that was fitted.

use std::path::Path;

use plotters::prelude::*;

use super::{
    COLORS, Failed, LABELS_WIDTH, LINE_HEIGHT, MARGIN, TEXT_SIZE, TITLE_HEIGHT, bold, canvas,
    headline, linear, linear_ticks, mesh, short,
};

const PANEL_HEIGHT: i32 = 150;
const AXIS_HEIGHT: i32 = 48;

/// One figure over time.
#[derive(Debug, Clone)]
pub struct Panel {
    /// What it is, and what the line says.
    pub title: String,
    /// Seconds and values.
    pub points: Vec<(f64, f64)>,
    /// Both ends of the fitted line, if there is one.
    pub line: Option<[(f64, f64); 2]>,
}

/// Draws `panels` one below the other, each with a scale of its own from 0.
///
/// # Errors
/// When the file cannot be written.
pub fn panels(path: &Path, title: &str, panels: &[Panel]) -> Result<(), Failed> {
    let height = TITLE_HEIGHT + PANEL_HEIGHT * panels.len() as i32 + AXIS_HEIGHT;
    let root = canvas(path, height as u32)?;
    let mut rest = headline(&root, title)?;
    let times = panels.iter().filter_map(|panel| Some(panel.points.last()?.0));
    let seconds = times.fold(1.0, f64::max);
    for (index, panel) in panels.iter().enumerate() {
        let axis_height = if index + 1 == panels.len() { AXIS_HEIGHT } else { 0 };
        let (area, below) = rest.split_vertically(PANEL_HEIGHT + axis_height);
        rest = below;
        let highest = panel.points.iter().map(|point| point.1).fold(0.0, f64::max);
        let (mut times, values) = (linear_ticks(seconds, 12), linear_ticks(highest, 4));
        times.retain(|&time| time <= seconds);
        let top = values[values.len() - 1];
        area.draw(&Text::new(panel.title.as_str(), (MARGIN, 0), bold(TEXT_SIZE)))?;
        let mut chart = ChartBuilder::on(&area)
            .margin_top(LINE_HEIGHT)
            .margin_bottom(8)
            .margin_left(MARGIN)
            .margin_right(40)
            .x_label_area_size(axis_height)
            .y_label_area_size(LABELS_WIDTH)
            .build_cartesian_2d(linear(0.0..seconds, times), linear(0.0..top, values))?;
        mesh(&mut chart.configure_mesh())
            .x_desc(if axis_height > 0 { "seconds since the start" } else { "" })
            .x_label_formatter(&|value| short(*value))
            .y_label_formatter(&|value| short(*value))
            .draw()?;
        let points = panel.points.iter().copied();
        chart.draw_series(LineSeries::new(points, COLORS[5].stroke_width(1)))?;
        if let Some(ends) = panel.line {
            chart.draw_series(LineSeries::new(ends, COLORS[1].stroke_width(3)))?;
        }
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_panel_has_its_title_and_its_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("trend.svg");
        let panel = |title: &str, line| Panel {
            title: title.to_owned(),
            points: (0..100).map(|n| (f64::from(n), 20.0 + f64::from(n % 7))).collect(),
            line,
        };
        let none = Panel { points: Vec::new(), ..panel("nothing", None) };
        let drawn = [panel("resident", Some([(50.0, 22.0), (99.0, 23.0)])), none];
        panels(&path, "an hour", &drawn).expect("written");
        let svg = std::fs::read_to_string(&path).expect("there");
        for text in ["an hour", "resident", "nothing", "seconds since the start"] {
            assert!(svg.contains(text), "{text}");
        }
        let line = format!("#{:02X}{:02X}{:02X}", COLORS[1].0, COLORS[1].1, COLORS[1].2);
        assert_eq!(svg.matches(&line).count(), 1, "one line is fitted");
    }
}
