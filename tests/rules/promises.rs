//! Every promise of docs/semantics.md names a test that exists.

use std::collections::BTreeSet;
use std::fs;

/// One item of the page: its number, and its text on one line.
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

/// The references in backticks after "Tests:".
fn tests_of(promise: &Promise) -> Vec<String> {
    let named = promise.text.split_once("Tests: ").map_or("", |(_, named)| named);
    named.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// What is wrong with a reference, if anything.
fn defect(reference: &str) -> Option<String> {
    if let Some(spec) = reference.strip_prefix("csi-sanity: ") {
        return spec.is_empty().then(|| "a csi-sanity reference without a specification".to_owned());
    }
    let Some((file, function)) = reference.split_once("::") else {
        return Some(format!("{reference} is not FILE::FUNCTION"));
    };
    let Ok(text) = fs::read_to_string(file) else { return Some(format!("{file} does not exist")) };
    let function = function.strip_prefix("tests::").unwrap_or(function);
    let signature = format!("fn {function}(");
    let lines: Vec<_> = text.lines().map(str::trim_start).collect();
    let Some(at) = lines.iter().position(|line| line.contains(&signature)) else {
        return Some(format!("{file} has no function {function}"));
    };
    let mut attributes = lines.iter().take(at).rev().take_while(|line| line.starts_with("#["));
    (!attributes.any(|line| line.ends_with("test]"))).then(|| format!("{function} in {file} is not a test"))
}

#[test]
fn every_promise_names_existing_tests() {
    let promises = promises();
    assert!(promises.len() > 50, "only {} promises found", promises.len());
    let mut defects = Vec::new();
    for promise in &promises {
        let tests = tests_of(promise);
        if tests.iter().all(|test| test.starts_with("csi-sanity: ")) {
            defects.push(format!("{} names no test of this project", promise.number));
        }
        let wrong = tests.iter().filter_map(|test| defect(test));
        defects.extend(wrong.map(|text| format!("{}: {text}", promise.number)));
    }
    assert!(defects.is_empty(), "docs/semantics.md:\n{}", defects.join("\n"));
}

#[test]
fn promise_numbers_are_unique_and_well_formed() {
    let numbers: Vec<_> = promises().into_iter().map(|promise| promise.number).collect();
    let unique: BTreeSet<_> = numbers.iter().collect();
    assert_eq!(unique.len(), numbers.len(), "{numbers:?}");
    let well_formed = |number: &String| {
        let (group, at) = number.split_at(1);
        group.bytes().all(|byte| byte.is_ascii_uppercase()) && at.parse::<u32>().is_ok()
    };
    assert!(numbers.iter().all(well_formed), "{numbers:?}");
}

/// The numbers in the first parentheses of an item, such as `(Q5, Q32)`.
fn references(item: &str) -> Vec<&str> {
    let inside = item.split_once("** (").and_then(|(_, rest)| rest.split_once(')'));
    let numbers = inside.into_iter().flat_map(|(numbers, _)| numbers.split(", "));
    numbers.collect()
}

#[test]
fn every_item_about_limits_names_a_promise_that_exists() {
    let page = fs::read_to_string("docs/limits.md").unwrap();
    let numbers: BTreeSet<_> = promises().into_iter().map(|promise| promise.number).collect();
    let is_known = |number: &&str| *number == "kernel" || numbers.contains(*number);
    let items: Vec<_> = page.lines().filter(|line| line.starts_with("- ")).collect();
    assert!(items.len() > 25, "only {} items found", items.len());
    let is_defect = |item: &&&str| {
        let references = references(item);
        references.is_empty() || !references.iter().all(is_known)
    };
    let defects: Vec<_> = items.iter().filter(is_defect).collect();
    assert!(defects.is_empty(), "docs/limits.md: no promise, or an unknown one: {defects:#?}");
}
