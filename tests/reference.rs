//! The guide's reference, and what operators watch, name what the code has, and nothing else.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write,
    fs,
    path::Path,
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The words that begin so, of letters, digits, `_` and `-`.
fn words(text: &str, prefix: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let words =
        text.split(|c| !is_word(c)).filter(|word| word.len() > prefix.len() && word.starts_with(prefix));
    words.map(ToOwned::to_owned).collect()
}

/// The code of a file, without its tests and comments.
fn code(path: &str) -> String {
    let text = read(path);
    let code = text.split("mod tests {").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// What stands behind `=> "` in a file.
fn names(path: &str) -> BTreeSet<String> {
    let code = code(path);
    let behind = code.split("=> \"").skip(1).filter_map(|rest| rest.split('"').next());
    behind.filter(|name| !name.contains(' ')).map(ToOwned::to_owned).collect()
}

fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect()
}

#[test]
fn every_header_is_in_the_reference_and_no_other() {
    let defined = words(&code("src/message/headers.rs"), "x-idempotency-");
    assert_eq!(words(&read("src/guide/reference.md"), "x-idempotency-"), defined);
    assert!(defined.len() > 10, "{defined:?}");
}

#[test]
fn every_metric_is_in_the_reference_and_what_is_watched_exists() {
    let mut recorded = BTreeSet::new();
    for file in ["src/publisher/metrics.rs", "src/consumer/telemetry.rs", "src/outbox/metrics.rs"] {
        recorded.extend(words(&code(file), "idempotent_"));
    }
    assert!(recorded.len() > 10, "{recorded:?}");
    assert_eq!(words(&read("src/guide/reference.md"), "idempotent_"), recorded);
    for file in ["docs/operations/alerts.yml", "docs/operations/dashboard.json"] {
        let watched = words(&read(file), "idempotent_");
        assert!(!watched.is_empty(), "{file}");
        for name in watched {
            let name = name.strip_suffix("_sum").or(name.strip_suffix("_count")).unwrap_or(&name);
            assert!(recorded.contains(name), "{file} watches {name}, which nothing records");
        }
    }
}

/// Each with what it is looked at by, how urgent it is, and what it says.
#[test]
fn every_alert_can_be_acted_on_and_the_outbox_is_watched() {
    let rules = read("docs/operations/alerts.yml");
    let rules: Vec<&str> = rules.split("      - alert: ").skip(1).collect();
    let mut alerts = BTreeSet::new();
    for rule in &rules {
        let name = rule.lines().next().unwrap();
        assert!(alerts.insert(name), "{name} is there twice");
        let severity = rule.split_once("labels: { severity: ").unwrap().1.split(' ').next().unwrap();
        assert!(["page", "ticket"].contains(&severity), "{name}: {severity}");
        assert!(!words(rule.split_once("expr: ").unwrap().1, "idempotent_").is_empty(), "{name}");
        let (_, summary) = rule.split_once("summary: ").unwrap();
        assert!(summary.lines().next().unwrap().split(' ').count() >= 4, "{name}: {summary}");
    }
    let (rules, dashboard) = (rules.concat(), read("docs/operations/dashboard.json"));
    for gauge in ["oldest_seconds", "parked", "lanes", "listening", "horizon_held_seconds", "held_routes"] {
        assert!(rules.contains(&format!("idempotent_outbox_{gauge}")), "no alert looks at {gauge}");
    }
    for state in self::names("src/outbox/status.rs") {
        let is_named = rules.contains(&state);
        let is_well = ["relaying", "standby", "draining", "stopped", "starting"].contains(&state.as_str());
        assert!(is_named || is_well, "no alert tells of relays that are {state}");
    }
    for name in words(&code("src/outbox/metrics.rs"), "idempotent_outbox_") {
        assert!(words(&dashboard, "idempotent_").iter().any(|shown| shown.starts_with(&name)), "{name}");
    }
}

#[test]
fn every_outcome_reason_cause_and_state_is_in_the_reference() {
    let said = quoted(&read("src/guide/reference.md"));
    for file in [
        "src/idempotency/outcome.rs",
        "src/consumer/settlement.rs",
        "src/consumer/status.rs",
        "src/publisher/status.rs",
        "src/outbox/status.rs",
    ] {
        let names = names(file);
        assert!(names.len() >= 5, "{file}: {names:?}");
        for name in names {
            assert!(said.contains(&name), "{file} has {name}, which the reference does not name");
        }
    }
}

/// The paragraphs and entries of a section of the reference, each on one line.
fn section(title: &str) -> Vec<String> {
    let page = read("src/guide/reference.md");
    let (_, rest) = page.split_once(&format!("\n## {title}\n")).unwrap();
    let entries = rest.split("\n## ").next().unwrap().split("\n- ");
    entries.map(|entry| entry.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// The words in quotes that a pattern follows: `"scope" =>`, `("scope",`.
fn keys(code: &str) -> BTreeSet<String> {
    let quotes: Vec<&str> = code.split('"').collect();
    let at = |n: usize| quotes.get(n).copied().unwrap_or_default();
    let is_key =
        |n: &usize| at(n + 1).starts_with(" =>") || at(n - 1).ends_with('(') && at(n + 1).starts_with(',');
    (1..quotes.len()).step_by(2).filter(is_key).map(|n| at(n).to_owned()).collect()
}

/// The labels of what a macro is called with, `let`s that are named in it included.
fn labels(before: &str, arguments: &str) -> BTreeSet<String> {
    let mut labels = keys(arguments);
    for name in arguments.split(|c: char| !(c.is_alphanumeric() || c == '_')) {
        if let Some((earlier, value)) = before.rsplit_once(&format!("let {name} =")) {
            labels.extend(self::labels(earlier, value.split_once(';').unwrap().0));
        }
    }
    labels
}

#[test]
fn every_metric_has_the_kind_and_the_labels_of_the_reference() {
    let mut recorded = BTreeMap::new();
    for file in ["src/publisher/metrics.rs", "src/consumer/telemetry.rs", "src/outbox/metrics.rs"] {
        let code = code(file);
        for kind in ["counter", "histogram", "gauge"] {
            for (at, _) in code.match_indices(&format!("{kind}!(\"")) {
                let called = &code[at..];
                let (name, arguments) = called.split_once('"').unwrap().1.split_once('"').unwrap();
                let (arguments, _) = arguments.split_once(").").or(arguments.split_once(")\n")).unwrap();
                recorded.insert(name.to_owned(), (kind, labels(&code[..at], arguments)));
            }
        }
        // Most gauges are recorded in a loop over their names.
        for name in words(&code, "idempotent_") {
            recorded.entry(name).or_insert(("gauge", BTreeSet::new()));
        }
    }
    let mut said = BTreeMap::new();
    let entries = section("Metrics");
    for entry in &entries[1..] {
        let (names, text) = entry.split_once(" (").unwrap();
        let kind = ["counter", "histogram", "gauge"].into_iter().find(|kind| text.starts_with(kind)).unwrap();
        let by = text.split_once("by `").map(|(_, by)| format!("`{by}")).unwrap_or_default();
        let labels = quoted(by.split([':', ';', '.']).next().unwrap());
        said.extend(quoted(names).into_iter().map(|name| (name, (kind, labels.clone()))));
    }
    assert_eq!(said, recorded);
    assert!(recorded.values().any(|(_, labels)| labels.len() == 3), "{recorded:?}");
    let (_, attempts) = entries[1].split_once("by `outcome`:").unwrap();
    let outcomes = quoted(attempts.split('.').next().unwrap());
    let counted = keys(
        code("src/publisher/metrics.rs").split_once("let counters").unwrap().1.split_once("];").unwrap().0,
    );
    assert_eq!(outcomes, counted);
}

#[test]
fn every_span_has_the_attributes_of_the_reference() {
    let entries = section("Spans");
    let of_both = quoted(&entries[0]);
    let mut said: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in &entries[1..] {
        let (name, attributes) = entry.split_once(',').unwrap();
        let attributes = quoted(attributes).into_iter().chain(of_both.clone()).collect();
        said.insert(name.trim_matches('`').to_owned(), attributes);
    }
    let mut opened = BTreeMap::new();
    for file in ["src/publisher/telemetry.rs", "src/consumer/telemetry.rs"] {
        let code = code(file);
        for (at, _) in code.match_indices("_span!(") {
            let (span, _) = code[at..].split_once("\n    )").unwrap();
            let (name, fields) = span.split_once('"').unwrap().1.split_once('"').unwrap();
            let fields = fields.lines().filter_map(|line| line.split_once(" = "));
            let fields: BTreeSet<String> = fields.map(|(field, _)| field.trim().to_owned()).collect();
            opened.insert(name.to_owned(), fields);
        }
    }
    assert_eq!(opened.len(), 2, "{opened:?}");
    assert_eq!(said, opened);
}

#[test]
fn every_queue_that_is_declared_is_in_the_reference() {
    let between = |code: &str, before: &str, after: &str| {
        let (_, rest) = code.split_once(before).unwrap();
        rest.split_once(after).unwrap().0.to_owned()
    };
    let delay = between(&code("src/amqp/deaths.rs"), "DELAY_SUFFIX: &str = \"", "\"");
    let parking = between(&code("src/consumer/parking.rs"), "format!(\"{queue}", "\")");
    let declared = [format!("<queue>{delay}<milliseconds>"), format!("<queue>{parking}")];
    let said = section("Queues").iter().flat_map(|entry| quoted(entry)).collect::<Vec<_>>();
    let said: BTreeSet<String> = said.into_iter().filter(|name| name.starts_with("<queue>")).collect();
    assert_eq!(said, BTreeSet::from(declared));
}

#[test]
fn every_outcome_is_in_the_picture() {
    let (code, picture) = (code("src/idempotency/outcome.rs"), read("src/guide/pictures/outcomes.svg"));
    let (_, names) = code.split_once("impl Outcome").unwrap();
    let (names, _) = names.split_once("fn is_handled").unwrap();
    let outcomes =
        names.split("Self::").skip(1).filter_map(|arm| arm.split(|c: char| !c.is_alphanumeric()).next());
    let outcomes: BTreeSet<&str> = outcomes.collect();
    assert!(outcomes.len() >= 14, "{outcomes:?}");
    for outcome in outcomes {
        assert!(picture.contains(outcome), "outcomes.svg does not show {outcome}");
    }
}

#[test]
fn what_a_reader_meets_first_is_short() {
    let readme = read("README.md");
    assert!(readme.lines().count() <= 90, "{} lines", readme.lines().count());
    assert!(readme.split_whitespace().count() <= 650, "{} words", readme.split_whitespace().count());
    let pages = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/guide")).unwrap();
    let pages = pages.map(|page| format!("src/guide/{}", page.unwrap().file_name().to_string_lossy()));
    let pages: Vec<String> =
        pages.filter(|page| Path::new(page).extension().is_some_and(|ext| ext == "md")).collect();
    assert_eq!(pages.len(), 12, "{pages:?}");
    for page in &pages {
        assert!(read(page).lines().count() <= 120, "{page}");
    }
    for file in pages.iter().map(String::as_str).chain(["README.md", "DESIGN.md", "CONTRIBUTING.md"]) {
        for (number, line) in read(file).lines().enumerate() {
            assert!(line.chars().count() <= 100, "{file}:{}: {line}", number + 1);
        }
    }
}

const IN_A_LINK: AsciiSet =
    NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'/').remove(b':').remove(b'=');

/// rustdoc copies no files, so the guide's pictures are in its text; `UPDATE_PICTURES=1` puts them
/// there.
#[test]
fn every_picture_is_embedded_as_it_is_drawn() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/guide/pictures");
    let drawn: BTreeSet<String> =
        fs::read_dir(&folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    let mut embedded = String::new();
    for name in drawn.iter().filter_map(|file| file.strip_suffix(".svg")) {
        let picture = read(&format!("src/guide/pictures/{name}.svg"));
        assert!(picture.contains("aria-label="), "{name}.svg does not say what it shows");
        let link = utf8_percent_encode(&picture, &IN_A_LINK);
        writeln!(embedded, "[{name}]: data:image/svg+xml,{link}").unwrap();
        let pages = ["how_it_works", "failures", "outbox"].map(|page| read(&format!("src/guide/{page}.md")));
        let shown = pages.iter().any(|page| {
            page.contains(&format!("][{name}]")) && page.contains(&format!("\n[{name}]: pictures/{name}.svg"))
        });
        assert!(shown, "no page shows {name}.svg");
    }
    assert!(embedded.lines().count() >= 5, "{drawn:?}");
    if env::var_os("UPDATE_PICTURES").is_some() {
        fs::write(folder.join("embedded.md"), &embedded).unwrap();
    }
    let current = read("src/guide/pictures/embedded.md") == embedded;
    assert!(current, "run it with UPDATE_PICTURES=1, and commit src/guide/pictures/embedded.md");
}
