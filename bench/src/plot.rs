//! latency.svg and timeline.svg.
//!
//! Latency is drawn over the percentile axis of HdrHistogram: each step to the right is one more
//! nine, so the tail gets as much room as the median. Both axes of latency are logarithmic.

use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::measure::Latency;
use crate::report::Sample;

const SIZE: (u32, u32) = (960, 480);
const COLORS: [RGBColor; 4] =
    [RGBColor(31, 119, 180), RGBColor(214, 39, 40), RGBColor(44, 160, 44), RGBColor(148, 103, 189)];

type Failed = Box<dyn std::error::Error>;
type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws the distributions of `curves` over each other.
///
/// # Errors
/// When the file cannot be written.
pub fn latency(path: &Path, title: &str, curves: &[(&str, &Latency)]) -> Result<(), Failed> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let filled = curves.iter().filter(|(_, latency)| latency.count() > 0);
    let longest = filled.clone().map(|(_, latency)| latency.count()).max().unwrap_or(1);
    let nines = (longest as f64).log10().ceil().clamp(2.0, 8.0);
    let lowest = filled.clone().map(|(_, latency)| latency.quantile(0.0)).min().unwrap_or(1000);
    let highest = filled.clone().map(|(_, latency)| latency.max()).max().unwrap_or(1_000_000);
    let range = milliseconds(lowest.max(1000)) * 0.8..milliseconds(highest.max(2000)) * 1.2;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .margin_right(36)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..nines, range.log_scale())?;
    chart
        .configure_mesh()
        .max_light_lines(2)
        .x_desc("percentile")
        .y_desc("milliseconds")
        .x_labels(nines as usize + 1)
        .x_label_formatter(&|nines| percentile(*nines))
        .y_label_formatter(&|value| format!("{value:.3}"))
        .draw()?;
    for (index, (name, curve)) in filled.enumerate() {
        let color = COLORS[index % COLORS.len()];
        let points = curve.points().map(|(quantile, ns)| {
            let x = if quantile < 1.0 { -(1.0 - quantile).log10() } else { nines };
            (x.min(nines), milliseconds(ns.max(1000)))
        });
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .position(SeriesLabelPosition::LowerRight)
        .draw()?;
    root.present()?;
    Ok(())
}

/// Draws what happened when: connections, deliveries per second, the worst latency of each moment.
///
/// # Errors
/// When the file cannot be written.
pub fn timeline(path: &Path, title: &str, samples: &[Sample]) -> Result<(), Failed> {
    let root = SVGBackend::new(path, (SIZE.0, SIZE.1 * 3 / 2)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, ("sans-serif", 18))?;
    let panels = root.split_evenly((3, 1));
    let seconds = samples.last().map_or(1.0, |sample| sample.seconds).max(0.1);
    let span = 0.0..seconds;
    let series = |value: fn(&Sample) -> f64| {
        samples.iter().map(move |sample| (sample.seconds, value(sample))).collect::<Vec<_>>()
    };
    panel(&panels[0], span.clone(), "connections", series(|sample| sample.connections as f64))?;
    let deliveries = series(|sample| sample.deliveries_per_second);
    panel(&panels[1], span.clone(), "deliveries/s", deliveries)?;
    panel(&panels[2], span, "worst latency, ms", series(|sample| sample.worst_ms))?;
    root.present()?;
    Ok(())
}

fn panel(
    area: &Canvas<'_>,
    span: Range<f64>,
    name: &str,
    points: Vec<(f64, f64)>,
) -> Result<(), Failed> {
    let highest = points.iter().map(|point| point.1).fold(0.0, f64::max).max(1.0);
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_right(36)
        .x_label_area_size(28)
        .y_label_area_size(84)
        .build_cartesian_2d(span, 0.0..highest * 1.1)?;
    chart
        .configure_mesh()
        .max_light_lines(2)
        .x_desc("seconds")
        .y_desc(name)
        .x_label_formatter(&|value| format!("{value:.1}"))
        .y_label_formatter(&|value| short(*value))
        .draw()?;
    chart.draw_series(LineSeries::new(points, COLORS[0].stroke_width(2)))?;
    Ok(())
}

/// 0 nines is the minimum, 1 is the 90th percentile, 2 the 99th.
fn percentile(nines: f64) -> String {
    let percent = 100.0 - 100.0 * 10_f64.powf(-nines);
    let digits = (nines.round() as usize).saturating_sub(2);
    format!("{percent:.digits$}%")
}

fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.2}M", v / 1e6),
        v if v >= 1e4 => format!("{:.0}k", v / 1e3),
        v if v >= 10.0 => format!("{v:.0}"),
        v => format!("{v:.1}"),
    }
}

fn milliseconds(ns: u64) -> f64 {
    ns as f64 / 1e6
}
