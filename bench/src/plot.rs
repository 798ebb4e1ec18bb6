//! The pictures: latency.svg, timeline.svg, and what comparisons draw.
//!
//! Latency is drawn over the percentile axis of HdrHistogram: each step to the right is one more
//! nine, so the tail gets as much room as the median. Both axes of latency are logarithmic.
//!
//! Everything reads without colour: curves differ by the shape of their markers, and the colours
//! themselves are those that colour-blind people can tell apart (Okabe and Ito, "Color Universal
//! Design", 2008). Text is SVG text, so no fonts are needed here; the widths it is laid out with
//! are estimates on the safe side.

pub mod trend;

use std::ops::Range;
use std::path::Path;

use plotters::chart::MeshStyle;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use plotters::style::FontStyle;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::measure::Latency;
use crate::report::{Sample, Timeline};

const WIDTH: u32 = 960;
const MARGIN: i32 = 16;
const TITLE_HEIGHT: i32 = 48;
/// Length of a line in a legend, and the gap after it.
const LEGEND_LINE: i32 = 36;
/// From one bar to the next.
const BAR_HEIGHT: i32 = 26;
/// Room for the labels of a vertical axis.
const LABELS_WIDTH: u32 = 84;
/// Sizes of fonts. plotters counts the whole line: on the screen they are a fifth smaller.
const TITLE_SIZE: u32 = 24;
const TEXT_SIZE: u32 = 17;
/// Height of a line of text of [`TEXT_SIZE`].
const LINE_HEIGHT: i32 = 24;
/// Width of a character by the size of its font: wider than the mean of any sans-serif.
const CHARACTER_WIDTH: f64 = 0.5;

/// Where the median is on an axis of nines: log10(2).
const HALF: f64 = std::f64::consts::LOG10_2;
/// Latencies below are drawn as this, in nanoseconds: the histogram begins here.
const LOWEST: u64 = 1_000;

const INK: RGBColor = RGBColor(34, 34, 34);
const GRID: RGBColor = RGBColor(200, 200, 200);
const GRID_LIGHT: RGBColor = RGBColor(235, 235, 235);
/// Okabe and Ito's, without the yellow, which white paper swallows.
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];
/// Outlines of the markers, in pixels around their point: square, triangle, diamond, triangle on
/// its tip, hexagon.
const MARKERS: [&[(i32, i32)]; 5] = [
    &[(-4, -4), (4, -4), (4, 4), (-4, 4)],
    &[(0, -6), (6, 5), (-6, 5)],
    &[(0, -6), (6, 0), (0, 6), (-6, 0)],
    &[(0, 6), (6, -5), (-6, -5)],
    &[(-5, 0), (-3, -5), (3, -5), (5, 0), (3, 5), (-3, 5)],
];

type Failed = Box<dyn std::error::Error>;
type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws the distributions of `curves` over each other, each under its name. Empty ones are left
/// out.
///
/// # Errors
/// When the file cannot be written.
pub fn latency(path: &Path, title: &str, curves: &[(&str, &Latency)]) -> Result<(), Failed> {
    let filled: Vec<_> = curves.iter().filter(|(_, latency)| latency.count() > 0).collect();
    let names: Vec<_> = filled.iter().map(|(name, _)| *name).collect();
    let places = legend_places(&names);
    let legend_height = places.last().map_or(0, |place| place.1 + LINE_HEIGHT);
    let root = canvas(path, 500 + legend_height as u32)?;
    let area = headline(&root, title)?;
    let (legend, area) = area.split_vertically(legend_height);
    for (index, (name, (x, y))) in names.iter().zip(places).enumerate() {
        let line = [(x, y + 8), (x + LEGEND_LINE - 8, y + 8)];
        legend.draw(&PathElement::new(line, color(index).stroke_width(2)))?;
        legend.draw(&marker(index, (x + LEGEND_LINE / 2 - 4, y + 8)))?;
        legend.draw(&Text::new(*name, (x + LEGEND_LINE, y + 3), text(TEXT_SIZE)))?;
    }

    let longest = filled.iter().map(|(_, latency)| latency.count()).max().unwrap_or(1);
    let nines = (longest as f64).log10().ceil().clamp(2.0, 8.0);
    let whole = 0..=nines as u32;
    let percentiles: Vec<_> = whole.map(|n| if n == 0 { HALF } else { f64::from(n) }).collect();
    let lowest = filled.iter().map(|(_, latency)| latency.quantile(0.0)).min().unwrap_or(LOWEST);
    let highest = filled.iter().map(|(_, latency)| latency.max()).max().unwrap_or(1_000_000);
    let ticks = log_ticks(lowest.max(LOWEST) as f64, highest.max(2 * LOWEST) as f64);
    // Over many decades, labels at 2 and 5 would crowd; their lines stay.
    let crowded = ticks.len() > 13;
    let x_axis = linear(0.0..nines, percentiles.clone());
    let y_axis = Axis {
        range: ticks[0]..ticks[ticks.len() - 1],
        logarithmic: true,
        labels: ticks.iter().copied().filter(|&ns| !crowded || is_power_of_ten(ns)).collect(),
        lines: ticks,
    };
    let mut chart = ChartBuilder::on(&area)
        .margin(MARGIN)
        .margin_top(4)
        .margin_right(40)
        .x_label_area_size(48)
        .y_label_area_size(LABELS_WIDTH)
        .build_cartesian_2d(x_axis, y_axis)?;
    mesh(&mut chart.configure_mesh())
        .x_desc("percentile")
        .x_label_formatter(&|nines| percentile(*nines))
        .y_label_formatter(&|ns| duration(*ns))
        .draw()?;
    for (index, (_, curve)) in filled.iter().enumerate() {
        let points = curve.points().map(|(quantile, ns)| {
            let x = if quantile < 1.0 { -(1.0 - quantile).log10() } else { nines };
            (x.min(nines), ns.max(LOWEST) as f64)
        });
        chart.draw_series(LineSeries::new(points, color(index).stroke_width(2)))?;
        for &nines in &percentiles {
            let ns = curve.quantile(1.0 - 10_f64.powf(-nines)).max(LOWEST);
            root.draw(&marker(index, chart.backend_coord(&(nines, ns as f64))))?;
        }
    }
    root.present()?;
    Ok(())
}

/// Draws what happened when, a panel for each figure that has one: connections, deliveries per
/// second, the worst latency of each moment, the server's memory. Stages are marked.
///
/// # Errors
/// When the file cannot be written.
pub fn timeline(path: &Path, title: &str, timeline: &Timeline) -> Result<(), Failed> {
    let series = |value: fn(&Sample) -> Option<f64>| -> Vec<(f64, f64)> {
        let point = |sample: &Sample| Some((sample.seconds, value(sample)?));
        timeline.samples.iter().filter_map(point).collect()
    };
    let mut panels = [
        ("connections", series(|sample| Some(sample.connections as f64))),
        ("deliveries per second", series(|sample| Some(sample.deliveries_per_second))),
        ("worst latency, ms", series(|sample| Some(sample.worst_ms))),
        ("server RSS, MiB", series(|sample| Some(sample.server_rss_kib? as f64 / 1024.0))),
    ]
    .to_vec();
    panels.retain(|(_, points)| points.iter().any(|point| point.1 > 0.0));
    let (panel_height, axis_height) = (150, 48);
    let height = TITLE_HEIGHT + LINE_HEIGHT + panel_height * panels.len() as i32 + axis_height;
    let root = canvas(path, height as u32)?;
    let area = headline(&root, title)?;
    let (stage_names, mut rest) = area.split_vertically(LINE_HEIGHT);
    let seconds = timeline.samples.last().map_or(1.0, |sample| sample.seconds).max(0.1);
    for (index, (name, points)) in panels.iter().enumerate() {
        let last = index + 1 == panels.len();
        let (area, below) =
            rest.split_vertically(panel_height + if last { axis_height } else { 0 });
        rest = below;
        let highest = points.iter().map(|point| point.1).fold(0.0, f64::max);
        let (mut times, values) = (linear_ticks(seconds, 12), linear_ticks(highest, 4));
        // The axis ends with the run, not with a round number.
        times.retain(|&time| time <= seconds);
        let top = values[values.len() - 1];
        area.draw(&Text::new(*name, (MARGIN, 0), text(TEXT_SIZE)))?;
        let mut chart = ChartBuilder::on(&area)
            .margin_top(LINE_HEIGHT)
            .margin_bottom(8)
            .margin_left(MARGIN)
            .margin_right(40)
            .x_label_area_size(if last { axis_height } else { 0 })
            .y_label_area_size(LABELS_WIDTH)
            .build_cartesian_2d(linear(0.0..seconds, times), linear(0.0..top, values))?;
        mesh(&mut chart.configure_mesh())
            .x_desc(if last { "seconds since the start" } else { "" })
            .x_label_formatter(&|value| short(*value))
            .y_label_formatter(&|value| short(*value))
            .draw()?;
        chart.draw_series(AreaSeries::new(points.iter().copied(), 0.0, COLORS[0].mix(0.15)))?;
        chart.draw_series(LineSeries::new(points.iter().copied(), COLORS[0].stroke_width(2)))?;
        let within = || timeline.marks.iter().filter(|mark| mark.seconds < seconds);
        chart.draw_series(within().map(|mark| {
            PathElement::new([(mark.seconds, 0.0), (mark.seconds, top)], COLORS[1].stroke_width(1))
        }))?;
        if index == 0 {
            let mut free = 0;
            for mark in within() {
                // Short stages crowd: their names move to the right, in their order, as far as
                // there is room.
                let x = chart.backend_coord(&(mark.seconds, 0.0)).0.max(free);
                free = x + text_width(&mark.stage, TEXT_SIZE) + 10;
                if free > WIDTH as i32 {
                    break;
                }
                let style = text(TEXT_SIZE).color(&COLORS[1]);
                stage_names.draw(&Text::new(mark.stage.clone(), (x, 4), style))?;
            }
        }
    }
    root.present()?;
    Ok(())
}

/// One question asked of everybody in [`bar_panels`].
#[derive(Debug, Clone)]
pub struct BarPanel {
    /// What was measured.
    pub title: String,
    /// Its unit, shown after every value.
    pub unit: String,
    /// Who, and how much; drawn from top to bottom.
    pub rows: Vec<(String, f64)>,
    /// Whether the smallest value is the best one.
    pub lower_is_better: bool,
}

/// Draws horizontal bars with their values, one panel below the other, each with a scale of its
/// own from 0. The best bar of a panel is the dark one.
///
/// # Errors
/// When the file cannot be written.
pub fn bar_panels(path: &Path, title: &str, panels: &[BarPanel]) -> Result<(), Failed> {
    let rows = panels.iter().map(|panel| panel.rows.len() as i32).sum::<i32>();
    let height = TITLE_HEIGHT + panels.len() as i32 * 2 * LINE_HEIGHT + rows * BAR_HEIGHT;
    let root = canvas(path, height as u32)?;
    let area = headline(&root, title)?;
    let names = panels.iter().flat_map(|panel| &panel.rows).map(|row| row.0.as_str());
    let left = MARGIN + names.map(|name| text_width(name, TEXT_SIZE)).max().unwrap_or(0) + 10;
    let mut y = 0;
    for panel in panels {
        let direction = if panel.lower_is_better { "lower is better" } else { "higher is better" };
        let heading = format!("{}, {} ({direction})", panel.title, panel.unit);
        area.draw(&Text::new(heading, (MARGIN, y), bold(TEXT_SIZE)))?;
        y += LINE_HEIGHT;
        let values = || panel.rows.iter().map(|row| row.1).filter(|value| value.is_finite());
        let highest = values().fold(f64::MIN_POSITIVE, f64::max);
        let best = if panel.lower_is_better { values().reduce(f64::min) } else { Some(highest) };
        // Values stand after their bars.
        let label = |value: f64| format!("{} {}", number(value), panel.unit);
        let labels = panel.rows.iter().map(|row| text_width(&label(row.1), TEXT_SIZE));
        let room = WIDTH as i32 - MARGIN - left - labels.max().unwrap_or(0) - 10;
        for (name, value) in &panel.rows {
            // What was not measured (NaN) has no length.
            let right = left + (value / highest * f64::from(room.max(1))) as i32;
            let color = if Some(*value) == best { COLORS[0] } else { COLORS[5] };
            let name_style = text(TEXT_SIZE).pos(Pos::new(HPos::Right, VPos::Top));
            area.draw(&Text::new(name.clone(), (left - 8, y + 7), name_style))?;
            area.draw(&Rectangle::new(
                [(left, y + 2), (right, y + BAR_HEIGHT - 4)],
                color.filled(),
            ))?;
            area.draw(&Text::new(label(*value), (right + 8, y + 7), text(TEXT_SIZE)))?;
            y += BAR_HEIGHT;
        }
        y += LINE_HEIGHT;
    }
    root.present()?;
    Ok(())
}

fn canvas(path: &Path, height: u32) -> Result<Canvas<'_>, Failed> {
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    Ok(root)
}

/// Draws the title, smaller if it is long, and returns the area below it.
fn headline<'a>(root: &Canvas<'a>, title: &str) -> Result<Canvas<'a>, Failed> {
    let room = WIDTH as i32 - 2 * MARGIN;
    let fits = |&size: &u32| text_width(title, size) <= room;
    let size = (10..=TITLE_SIZE).rev().find(fits).unwrap_or(10);
    let (head, area) = root.split_vertically(TITLE_HEIGHT);
    head.draw(&Text::new(title.to_owned(), (MARGIN, 14), bold(size)))?;
    Ok(area)
}

/// Where the entries of a legend go: in lines, as many as they need.
fn legend_places(names: &[&str]) -> Vec<(i32, i32)> {
    let (mut x, mut y) = (MARGIN, 0);
    let place = |name: &&str| {
        let width = LEGEND_LINE + text_width(name, TEXT_SIZE) + 24;
        if x > MARGIN && x + width > WIDTH as i32 - MARGIN {
            (x, y) = (MARGIN, y + LINE_HEIGHT);
        }
        let place = (x, y);
        x += width;
        place
    };
    names.iter().map(place).collect()
}

/// An axis with ticks of our choice.
struct Axis {
    range: Range<f64>,
    logarithmic: bool,
    /// Where there is a line of the grid.
    lines: Vec<f64>,
    /// Where there is a label as well.
    labels: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let place = |value: f64| if self.logarithmic { value.log10() } else { value };
        let (start, end) = (place(self.range.start), place(self.range.end));
        let share = (place(*value) - start) / (end - start);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { self.lines.clone() } else { self.labels.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

fn linear(range: Range<f64>, labels: Vec<f64>) -> Axis {
    Axis { range, logarithmic: false, lines: Vec::new(), labels }
}

/// Grid, axes and labels as all charts have them.
fn mesh<'m, 'a, 'b, 'c>(
    style: &'m mut MeshStyle<'a, 'b, Axis, Axis, SVGBackend<'c>>,
) -> &'m mut MeshStyle<'a, 'b, Axis, Axis, SVGBackend<'c>> {
    style
        .bold_line_style(GRID)
        .light_line_style(GRID_LIGHT)
        .axis_style(INK)
        .label_style(text(TEXT_SIZE))
        .axis_desc_style(text(TEXT_SIZE))
}

/// The marker of a curve, at a pixel.
fn marker(index: usize, (x, y): (i32, i32)) -> Polygon<(i32, i32)> {
    let outline = MARKERS[index % MARKERS.len()].iter().map(|(dx, dy)| (x + dx, y + dy));
    Polygon::new(outline.collect::<Vec<_>>(), color(index))
}

fn color(index: usize) -> RGBColor {
    COLORS[index % COLORS.len()]
}

fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

fn bold(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().style(FontStyle::Bold).color(&INK)
}

fn text_width(text: &str, size: u32) -> i32 {
    (text.chars().count() as f64 * f64::from(size) * CHARACTER_WIDTH).ceil() as i32
}

/// 1, 2 and 5 times the powers of ten, from the last one below `lowest` to the first above
/// `highest`: at least two.
fn log_ticks(lowest: f64, highest: f64) -> Vec<f64> {
    let decades = lowest.log10().floor() as i32..=highest.log10().ceil() as i32;
    let ticks: Vec<_> =
        decades.flat_map(|n| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(n))).collect();
    let from = ticks.iter().rposition(|&tick| tick <= lowest).unwrap_or(0);
    let until = ticks.iter().position(|&tick| tick >= highest).unwrap_or(ticks.len() - 1);
    ticks[from..=until.max(from + 1)].to_vec()
}

fn is_power_of_ten(value: f64) -> bool {
    (value.log10() - value.log10().round()).abs() < 1e-9
}

/// Round numbers from 0 to the first one at or above `highest`, at most `count` steps of them.
fn linear_ticks(highest: f64, count: usize) -> Vec<f64> {
    let highest = highest.max(f64::MIN_POSITIVE);
    let smallest = highest / count as f64;
    let power = 10_f64.powf(smallest.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power);
    let step = steps.into_iter().find(|&step| step >= smallest).unwrap_or(smallest);
    (0..=(highest / step).ceil() as usize).map(|n| n as f64 * step).collect()
}

/// 0.3 nines is the 50th percentile, 1 the 90th, 2 the 99th.
fn percentile(nines: f64) -> String {
    let percent = 100.0 - 100.0 * 10_f64.powf(-nines);
    let digits = (nines.round() as usize).saturating_sub(2);
    format!("{percent:.digits$} %")
}

/// A round duration with the unit that suits it.
fn duration(ns: f64) -> String {
    match ns {
        ns if ns >= 1e9 => format!("{} s", number(ns / 1e9)),
        ns if ns >= 1e6 => format!("{} ms", number(ns / 1e6)),
        ns => format!("{} us", number(ns / 1e3)),
    }
}

/// A round number in little room.
fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{} M", number(value / 1e6)),
        value if value >= 1e4 => format!("{} k", number(value / 1e3)),
        value => number(value),
    }
}

/// Three digits or more, none that mean nothing: 0.123, 1.5, 12.3, 1,234.
#[must_use]
pub fn number(value: f64) -> String {
    if value.abs() >= 999.5 {
        let digits = format!("{:.0}", value.abs());
        let mut text = if value < 0.0 { "-".to_owned() } else { String::new() };
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index) % 3 == 0 {
                text.push(',');
            }
            text.push(digit);
        }
        return text;
    }
    let digits = match value.abs() {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_enclose() {
        assert_eq!(log_ticks(1.3, 24.0), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(log_ticks(2.0, 2.0), [2.0, 5.0]);
        assert_eq!(linear_ticks(23.0, 5), [0.0, 5.0, 10.0, 15.0, 20.0, 25.0]);
        assert_eq!(linear_ticks(0.0, 5).len(), 6);
    }

    #[test]
    fn labels_are_short() {
        let nines: Vec<_> = [HALF, 1.0, 2.0, 3.0, 4.0].map(percentile).to_vec();
        assert_eq!(nines, ["50 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
        let durations = [5e3, 2e5, 1e6, 2e7, 5e9].map(duration);
        assert_eq!(durations, ["5 us", "200 us", "1 ms", "20 ms", "5 s"]);
        let numbers = [0.0, 0.1234, 1.5, 12.34, 123.4, 1234.0, 1_234_567.0, -1234.0].map(number);
        assert_eq!(numbers, ["0", "0.123", "1.5", "12.3", "123", "1,234", "1,234,567", "-1,234"]);
    }

    #[test]
    fn legends_break_into_lines_and_never_leave_the_picture() {
        let name = "a name of some length for a curve";
        let places = legend_places(&[name; 7]);
        assert!(places.windows(2).all(|two| two[0].1 < two[1].1 || two[0].0 < two[1].0));
        assert!(places.last() > Some(&(0, 0)) && places[6].1 > 0);
        let width = text_width(name, TEXT_SIZE) + LEGEND_LINE;
        assert!(places.iter().all(|(x, _)| x + width < WIDTH as i32));
    }

    #[test]
    fn bars_carry_their_names_and_values() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("bars.svg");
        let panel = |title: &str, unit: &str, lower_is_better, values: [f64; 3]| BarPanel {
            title: title.to_owned(),
            unit: unit.to_owned(),
            rows: ["one", "another", "a < third"]
                .map(str::to_owned)
                .into_iter()
                .zip(values)
                .collect(),
            lower_is_better,
        };
        let panels = [
            panel("rate", "deliveries/s", false, [1_234_567.0, 800_000.0, 0.0]),
            panel("memory per connection", "B", true, [152.0, 12_345.0, f64::NAN]),
        ];
        bar_panels(&path, "three servers", &panels).expect("written");
        let svg = std::fs::read_to_string(&path).expect("there");
        for text in ["1,234,567 deliveries/s", "12,345 B", "a &lt; third", "lower is better"] {
            assert!(svg.contains(text), "{text}");
        }
        let best = format!("#{:02X}{:02X}{:02X}", COLORS[0].0, COLORS[0].1, COLORS[0].2);
        assert_eq!(svg.matches(&best).count(), 2, "one best bar per panel");
    }
}
