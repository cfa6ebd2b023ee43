//! The ratio to the limit, as a picture.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::drain::CellReport;
use crate::report::Report;

const SIZE: (u32, u32) = (860, 380);
/// Room above the limit for the range of a noisy machine; what is beyond it is cut off.
const TOP: f64 = 1.3;
const OURS: RGBColor = RGBColor(37, 99, 165);
const LINE: RGBColor = RGBColor(110, 118, 129);

type Point = (SegmentValue<usize>, f64);

/// Draws the rates from a full queue: a bar for each cell, its range, and the limit.
pub(crate) fn draw(report: &Report, file: &Path) -> Result<()> {
    if report.drain.is_empty() {
        bail!("nothing to draw: --svg shows the rates from a full queue, which --only leaves out");
    }
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    // What is drawn names itself in its errors, which live no longer than it.
    bars(&area, report).map_err(|error| anyhow!("cannot draw {}: {error}", file.display()))
}

fn bars(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    report: &Report,
) -> Result<(), Box<dyn std::error::Error>> {
    area.fill(&WHITE)?;
    let cells = &report.drain;
    let caption = "Commands a second, as a part of what a bridge in C without checks does";
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 17))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(46)
        .build_cartesian_2d((0..cells.len() - 1).into_segmented(), 0.0..TOP)?;
    let name = |at: &SegmentValue<usize>| match at {
        SegmentValue::CenterOf(at) => cells.get(*at).map(name_of).unwrap_or_default(),
        SegmentValue::Exact(_) | SegmentValue::Last => String::new(),
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .bold_line_style(LINE.mix(0.25))
        .axis_style(LINE)
        .x_labels(cells.len())
        .x_label_formatter(&name)
        .x_desc(format!("prefetch / devices; median and range of {}", runs(report)))
        .y_labels(7)
        .y_label_formatter(&|ratio| format!("{ratio:.1}"))
        .label_style(("sans-serif", 13))
        .draw()?;
    chart.draw_series(cells.iter().enumerate().map(|(at, cell)| bar(at, cell)))?;
    chart.draw_series(cells.iter().enumerate().map(|(at, cell)| range(at, cell)))?;
    let white = ("sans-serif", 12).into_font().color(&WHITE);
    chart.draw_series(cells.iter().enumerate().map(|(at, cell)| {
        let rate = format!("{:.0}/s", cell.rabbitline.rate.median);
        EmptyElement::at((SegmentValue::CenterOf(at), 0.0))
            + Text::new(rate, (-24, -18), white.clone())
    }))?;
    let ends = [SegmentValue::Exact(0), SegmentValue::Last];
    chart.draw_series([PathElement::new(ends.map(|end| (end, 1.0)), LINE.stroke_width(2))])?;
    let note = report.machine.to_string();
    area.draw(&Text::new(note, (60, 40), ("sans-serif", 12).into_font().color(&LINE)))?;
    area.present()?;
    Ok(())
}

/// As long as the median.
fn bar(at: usize, cell: &CellReport) -> Rectangle<Point> {
    let (left, right) = (SegmentValue::Exact(at), SegmentValue::Exact(at + 1));
    let mut bar = Rectangle::new([(left, 0.0), (right, cell.ratio.median)], OURS.filled());
    bar.set_margin(0, 0, 18, 18);
    bar
}

/// How far the runs went apart.
fn range(at: usize, cell: &CellReport) -> PathElement<Point> {
    let middle = SegmentValue::CenterOf(at);
    let ends = [cell.ratio.min, cell.ratio.max.min(TOP)];
    PathElement::new(ends.map(|end| (middle.clone(), end)), BLACK.stroke_width(2))
}

fn name_of(cell: &CellReport) -> String {
    format!("{} / {}", cell.cell.prefetch, cell.cell.devices)
}

fn runs(report: &Report) -> String {
    if report.runs == 1 { "one run".to_owned() } else { format!("{} runs", report.runs) }
}
