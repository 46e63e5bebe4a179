// SPDX-License-Identifier: GPL-2.0

//! mdBook's search index, without what is in it twice.
//!
//! It has a tree of words for each of three fields: titles, texts, and the names of the chapters
//! and sections above. The library that makes it forgets to begin anew with each field, so the
//! third tree holds the words of all three, and the second adds nothing but its size. Without it
//! the same searches find the same.

/// How the field of the texts is told among those that are searched.
const OPTION: &str = "\"body\":{\"boost\":1},";
const FIELDS: (&str, &str) =
    ("\"fields\":[\"title\",\"body\",\"breadcrumbs\"]", "\"fields\":[\"title\",\"breadcrumbs\"]");
/// The beginnings of the trees. A quotation mark inside of a text has a backslash before it.
const TREES: [&str; 3] =
    ["\"body\":{\"root\":", "\"breadcrumbs\":{\"root\":", "\"title\":{\"root\":"];

/// The index without the tree of the texts; nothing if it is not made as described.
pub(super) fn slim(index: &str) -> Option<String> {
    let mut at = [0; 3];
    for (at, tree) in at.iter_mut().zip(TREES) {
        *at = index.find(tree)?;
    }
    let [texts, all, titles] = at;
    // Were the tree of all words in order, it would be a small one.
    if !(texts < all && all < titles) || titles - all < all - texts {
        return None;
    }
    let head = &index[..texts];
    if !head.contains(OPTION) || !head.contains(FIELDS.0) {
        return None;
    }
    let head = head.replacen(OPTION, "", 1).replacen(FIELDS.0, FIELDS.1, 1);
    Some(head + &index[all..])
}

#[cfg(test)]
mod tests {
    use super::slim;

    const HEAD: &str = concat!(
        r#"{"search_options":{"fields":{"body":{"boost":1},"breadcrumbs":{"boost":1}}},"#,
        r#""docs":{"0":{"body":"a \\"body\\":{\\"root\\": b"}},"#,
        r#""fields":["title","body","breadcrumbs"],"index":{"#
    );

    fn index(texts: &str, all: &str) -> String {
        let (texts, all) = (tree("body", texts), tree("breadcrumbs", all));
        format!("{HEAD}{texts},{all},{}}}}}", tree("title", ""))
    }

    fn tree(name: &str, words: &str) -> String {
        format!("\"{name}\":{{\"root\":{{{words}}}}}")
    }

    #[test]
    fn the_tree_that_another_holds_goes() {
        let slim = slim(&index(r#""a":{},"b":{}"#, r#""a":{},"b":{},"c":{}"#)).expect("slimmer");
        // It lies in a string of JavaScript's, where each backslash has another before it.
        let json = slim.replace(r"\\", r"\");
        assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{json}");
        assert!(!slim.contains(r#""body":{"root""#) && !slim.contains(r#""body":{"boost""#));
        assert!(slim.contains(r#""fields":["title","breadcrumbs"]"#));
        assert!(slim.contains(r#""breadcrumbs":{"root":{"a":{},"b":{},"c":{}}}"#));
        assert!(slim.contains(r#"a \\"body\\":"#), "texts stay as they are");
    }

    #[test]
    fn an_index_of_another_make_stays() {
        assert_eq!(slim(&index(r#""a":{},"b":{},"c":{},"d":{}"#, r#""e":{}"#)), None);
        assert_eq!(slim(&index("", "").replace("\"title\",", "")), None);
        assert_eq!(slim("{}"), None);
    }
}
