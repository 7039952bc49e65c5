//! Every promise of docs/semantics.md names a test, and the test exists.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::BTreeSet;
use std::fs;

/// One item of the page: its number and its text, lines joined.
struct Promise {
    number: String,
    text: String,
}

/// The items that begin with `- **X1**`, each with the indented lines after it.
fn promises() -> Vec<Promise> {
    let page = fs::read_to_string("docs/semantics.md").unwrap();
    let mut found: Vec<Promise> = Vec::new();
    let mut open = false;
    for line in page.lines() {
        if let Some((number, text)) = line.strip_prefix("- **").and_then(|rest| rest.split_once("** ")) {
            found.push(Promise { number: number.to_owned(), text: text.to_owned() });
            open = true;
        } else if let (true, Some(more), Some(last)) = (open, line.strip_prefix("  "), found.last_mut()) {
            last.text.push(' ');
            last.text.push_str(more);
        } else {
            open = false;
        }
    }
    found
}

/// What stands in backticks after "Tests:".
fn tests_of(promise: &Promise) -> Vec<String> {
    let named = promise.text.split_once("Tests: ").map_or("", |(_, named)| named);
    named.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Why a reference leads nowhere, if it does.
fn broken(reference: &str) -> Option<String> {
    if let Some(spec) = reference.strip_prefix("csi-sanity: ") {
        return spec.is_empty().then(|| "names no specification".to_owned());
    }
    let Some((file, function)) = reference.split_once("::") else {
        return Some("is not FILE::FUNCTION".to_owned());
    };
    let Ok(text) = fs::read_to_string(file) else { return Some(format!("there is no {file}")) };
    let function = function.strip_prefix("tests::").unwrap_or(function);
    let begins = format!("fn {function}(");
    (!text.lines().any(|line| line.contains(&begins))).then(|| format!("no {function} in {file}"))
}

#[test]
fn every_promise_names_tests_that_exist() {
    let promises = promises();
    assert!(promises.len() > 50, "the page is read: {}", promises.len());
    let mut wrong = Vec::new();
    for promise in &promises {
        let tests = tests_of(promise);
        if tests.iter().all(|test| test.starts_with("csi-sanity: ")) {
            wrong.push(format!("{} names no test of ours", promise.number));
        }
        let broken = tests.iter().filter_map(|test| broken(test));
        wrong.extend(broken.map(|why| format!("{}: {why}", promise.number)));
    }
    assert!(wrong.is_empty(), "docs/semantics.md:\n{}", wrong.join("\n"));
}

#[test]
fn every_promise_has_a_number_of_its_own() {
    let numbers: Vec<_> = promises().into_iter().map(|promise| promise.number).collect();
    let unique: BTreeSet<_> = numbers.iter().collect();
    assert_eq!(unique.len(), numbers.len(), "{numbers:?}");
    let well_formed = |number: &String| {
        let (group, at) = number.split_at(1);
        group.bytes().all(|byte| byte.is_ascii_uppercase()) && at.parse::<u32>().is_ok()
    };
    assert!(numbers.iter().all(well_formed), "{numbers:?}");
}
