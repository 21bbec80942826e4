use std::cell::RefCell;

use html5ever::tendril::StrTendril;
use html5ever::tokenizer::{
    BufferQueue, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts,
};

use super::super::baseline::compare;
use super::super::tests::{DELAY, RATE, report, samples};
use super::super::{Failure, Report};
use super::render;

/// Elements without an end.
const VOID: [&str; 3] = ["meta", "br", "link"];
/// Elements and attributes that fetch or run something.
const ACTIVE: [&str; 7] = ["script", "link", "img", "iframe", "src", "onload", "onclick"];

/// What a browser reads; notes what is wrong, and the text of what is right.
#[derive(Default)]
struct Reader {
    open: RefCell<Vec<String>>,
    wrong: RefCell<Vec<String>>,
    text: RefCell<String>,
}

impl TokenSink for Reader {
    type Handle = ();

    fn process_token(&self, token: Token, line: u64) -> TokenSinkResult<()> {
        let wrong = |what: String| self.wrong.borrow_mut().push(format!("line {line}: {what}"));
        match token {
            Token::ParseError(error) => wrong(error.into()),
            Token::CharacterTokens(text) => self.text.borrow_mut().push_str(&text),
            Token::TagToken(tag) => {
                let name = tag.name.to_string();
                let attributes = tag.attrs.iter().map(|attribute| attribute.name.local.to_string());
                for active in attributes.chain([name.clone()]).filter(|name| ACTIVE.contains(&name.as_str()))
                {
                    wrong(format!("{active} is not for a page that stands alone"));
                }
                for link in tag.attrs.iter().filter(|attribute| &*attribute.name.local == "href") {
                    if !link.value.starts_with('#') {
                        wrong(format!("a link to elsewhere: {}", link.value));
                    }
                }
                match tag.kind {
                    TagKind::StartTag if !VOID.contains(&name.as_str()) => self.open.borrow_mut().push(name),
                    TagKind::StartTag => {}
                    TagKind::EndTag => {
                        if self.open.borrow_mut().pop().as_deref() != Some(name.as_str()) {
                            wrong(format!("{name} ends, and did not begin"));
                        }
                    }
                }
            }
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

/// The text of a page that is well-formed and stands alone.
fn read(page: &str) -> String {
    let input = BufferQueue::default();
    input.push_back(StrTendril::from(page));
    let tokenizer =
        Tokenizer::new(Reader::default(), TokenizerOpts { exact_errors: true, ..Default::default() });
    let _ = tokenizer.feed(&input);
    tokenizer.end();
    let reader = tokenizer.sink;
    assert_eq!(reader.wrong.into_inner(), Vec::<String>::new());
    assert_eq!(reader.open.into_inner(), Vec::<String>::new(), "not ended");
    reader.text.into_inner()
}

fn measured() -> Report {
    let direct: &[f64] = &[40_000.0, 41_234.0, 42_000.0];
    let mut all = samples(
        "same-node-l4",
        RATE,
        &[("direct", direct), ("mesh-agent", &[39_111.0, 40_222.0, 41_333.0]), ("<envoy & co>", &[8_101.0])],
    );
    all.extend(samples("unenrolled", DELAY, &[("direct", &[51.5]), ("mesh-agent", &[52.5])]));
    all.extend(samples("memory", DELAY, &[("mesh-agent", &[0.0123])]));
    report(all)
}

#[test]
fn every_figure_is_on_the_page() {
    let mut report = measured();
    report.failed.push(Failure { scenario: "control".into(), error: "said <no>".into() });
    let text = read(&render(&report, None));
    for figure in ["41,234", "40,222", "39,111–41,333", "8,101", "<envoy & co>", "51.5", "52.5", "0.0123"] {
        assert!(text.contains(figure), "{figure}");
    }
    for row in &report.rows {
        assert!(
            text.contains(&row.metric) && text.contains(&row.contender) && text.contains(&row.unit),
            "{row:?}"
        );
    }
    for told in
        ["control failed: said <no>", "A processor", "0123456789abcdef", "1.40.0", "2026-11-21T08:00:00Z"]
    {
        assert!(text.contains(told), "{told}");
    }
}

#[test]
fn plots_are_drawn_for_ratios_and_for_values() {
    let page = render(&measured(), None);
    read(&page);
    // Two metrics with ratios, one without, and a bullet for each target that is a ratio.
    assert_eq!(page.matches("<figure>").count(), 3);
    assert_eq!(page.matches("class=\"bullet\"").count(), 1);
    assert_eq!(
        page.matches("role=\"img\"").count(),
        page.matches("aria-label=\"").count() - 1,
        "nav has one too"
    );
}

#[test]
fn a_comparison_is_on_the_page() {
    let report = measured();
    let text = read(&render(&report, Some(&compare(&report, &report))));
    assert!(
        text.contains("Against the run of 2026-11-21T08:00:00Z")
            && text.contains("0 better, 0 worse, 6 the same")
    );
}

#[test]
fn a_page_can_be_made_of_nothing() {
    read(&render(&report(Vec::new()), None));
}
