//! The table: one line for each figure, printed as soon as it is known.

use std::time::Duration;

/// What a figure must keep to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bar {
    /// Nothing: for the reader.
    None,
    /// The ratio to what it stands beside.
    Ratio(f64),
    /// The figure itself must be below.
    Below(f64),
    /// The figure itself must be above.
    Above(f64),
}

/// Prints lines and counts those that miss their bar.
#[derive(Debug, Default)]
pub(crate) struct Table {
    missed: Vec<String>,
}

impl Table {
    /// A new part, with the names of its columns.
    pub(crate) fn part(&mut self, title: &str) {
        println!("\n{title:<58} {:>14} {:>14} {:>7}  bar", "orlop", "beside", "ratio");
    }

    /// One figure beside another; `ratio` is how many times better the other is.
    pub(crate) fn beside(
        &mut self,
        what: &str,
        orlop: (f64, &str),
        other: (f64, &str),
        ratio: f64,
        bar: Bar,
    ) {
        self.line(what, &shown(orlop), &shown(other), Some(ratio), orlop.0, bar);
    }

    /// One figure alone.
    pub(crate) fn alone(&mut self, what: &str, orlop: (f64, &str), bar: Bar) {
        self.line(what, &shown(orlop), "", None, orlop.0, bar);
    }

    /// A remark.
    pub(crate) fn note(&mut self, text: &str) {
        println!("  {text}");
    }

    fn line(&mut self, what: &str, orlop: &str, other: &str, ratio: Option<f64>, figure: f64, bar: Bar) {
        let (wanted, kept) = match (bar, ratio) {
            (Bar::Ratio(most), Some(ratio)) => (format!("≤ {most} times"), ratio <= most),
            (Bar::Ratio(most), None) => (format!("≤ {most} times"), false),
            (Bar::Below(most), _) => (format!("< {most}"), figure < most),
            (Bar::Above(least), _) => (format!("> {least}"), figure > least),
            (Bar::None, _) => (String::new(), true),
        };
        let ratio = ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let verdict = match (bar, kept) {
            (Bar::None, _) => "",
            (_, true) => " ok",
            (_, false) => " MISSED",
        };
        println!("{what:<58} {orlop:>14} {other:>14} {ratio:>7}  {wanted}{verdict}");
        if !kept {
            self.missed.push(what.to_owned());
        }
    }

    /// The figures that miss their bar.
    pub(crate) fn missed(&self) -> &[String] {
        &self.missed
    }
}

fn shown((figure, unit): (f64, &str)) -> String {
    let digits = match figure.abs() {
        0.0..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    format!("{figure:.digits$} {unit}")
}

/// The middle one.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// In milliseconds.
pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
