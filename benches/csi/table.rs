//! The printed table: one line per figure, printed as soon as the figure is known.

use std::time::Duration;

/// The limit that a figure has to meet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bar {
    /// No limit: the figure is printed for information.
    None,
    /// The largest allowed ratio to the compared figure.
    Ratio(f64),
    /// The figure itself must be below this value.
    Below(f64),
    /// The figure itself must be above this value.
    Above(f64),
}

/// Prints the lines and remembers the figures that missed their bar.
#[derive(Debug, Default)]
pub(crate) struct Table {
    missed: Vec<String>,
}

impl Table {
    /// Starts a section and prints the names of its columns.
    pub(crate) fn section(&mut self, title: &str) {
        println!("\n{title:<58} {:>14} {:>14} {:>7}  bar", "orlop", "compared with", "ratio");
    }

    /// Prints a figure next to another one; `ratio` says how many times better the other one is.
    pub(crate) fn compare(
        &mut self,
        what: &str,
        orlop: (f64, &str),
        other: (f64, &str),
        ratio: f64,
        bar: Bar,
    ) {
        self.line(what, &format_figure(orlop), &format_figure(other), Some(ratio), orlop.0, bar);
    }

    /// Prints a figure that has no counterpart.
    pub(crate) fn single(&mut self, what: &str, orlop: (f64, &str), bar: Bar) {
        self.line(what, &format_figure(orlop), "", None, orlop.0, bar);
    }

    /// Prints a remark.
    pub(crate) fn note(&mut self, text: &str) {
        println!("  {text}");
    }

    /// Prints the spread of the ratios whose median is the line above.
    pub(crate) fn spread(&mut self, ratios: &[f64]) {
        let at = |share| quantile(ratios, share);
        self.note(&format!(
            "{} pairs: ratio min {:.2}, quartiles {:.2} and {:.2}, max {:.2}",
            ratios.len(),
            at(0.0),
            at(0.25),
            at(0.75),
            at(1.0),
        ));
    }

    fn line(&mut self, what: &str, orlop: &str, other: &str, ratio: Option<f64>, figure: f64, bar: Bar) {
        let (wanted, met) = match (bar, ratio) {
            (Bar::Ratio(most), Some(ratio)) => (format!("≤ {most} times"), ratio <= most),
            (Bar::Ratio(most), None) => (format!("≤ {most} times"), false),
            (Bar::Below(most), _) => (format!("< {most}"), figure < most),
            (Bar::Above(least), _) => (format!("> {least}"), figure > least),
            (Bar::None, _) => (String::new(), true),
        };
        let ratio = ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let verdict = match (bar, met) {
            (Bar::None, _) => "",
            (_, true) => " ok",
            (_, false) => " MISSED",
        };
        println!("{what:<58} {orlop:>14} {other:>14} {ratio:>7}  {wanted}{verdict}");
        if !met {
            self.missed.push(what.trim().to_owned());
        }
    }

    /// The figures that missed their bar.
    pub(crate) fn missed(&self) -> &[String] {
        &self.missed
    }
}

fn format_figure((figure, unit): (f64, &str)) -> String {
    let digits = match figure.abs() {
        0.0..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    format!("{figure:.digits$} {unit}")
}

/// The median; NaN for no figures.
pub(crate) fn median(figures: &[f64]) -> f64 {
    quantile(figures, 0.5)
}

/// The median of the quotients of two series of equal length.
pub(crate) fn median_ratio(above: &[f64], below: &[f64]) -> f64 {
    median(&ratios(above, below))
}

/// The quotients of two series of equal length.
pub(crate) fn ratios(above: &[f64], below: &[f64]) -> Vec<f64> {
    above.iter().zip(below).map(|(above, below)| above / below).collect()
}

/// The figure below which the given share of the others lies.
fn quantile(figures: &[f64], share: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let mut below = 0;
    while below + 1 < sorted.len() && (below as f64) < share * (sorted.len() - 1) as f64 {
        below += 1;
    }
    sorted.get(below).copied().unwrap_or(f64::NAN)
}

/// Converts to milliseconds.
pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
