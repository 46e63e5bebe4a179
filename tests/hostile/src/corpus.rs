// SPDX-License-Identifier: GPL-2.0-only

//! Plans that once found something, made small. They are tried in every run.

/// Names and texts of the plans: a line here for every file in `corpus/`.
pub const CORPUS: &[(&str, &str)] = &[("reserved", include_str!("../corpus/reserved.plan"))];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use std::fs;

    #[test]
    fn every_plan_is_in_the_list_and_can_be_read() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus");
        let mut files: Vec<String> = fs::read_dir(folder)
            .expect("the folder is there")
            .map(|entry| entry.expect("a file").file_name())
            .filter_map(|name| name.to_str()?.strip_suffix(".plan").map(str::to_owned))
            .collect();
        files.sort_unstable();
        let names: Vec<&str> = CORPUS.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, files);
        for (name, text) in CORPUS {
            let plan: Plan = text
                .parse()
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(!plan.steps.is_empty(), "{name} does nothing");
            assert!(text.starts_with("# "), "{name} does not say what it found");
            let again: Plan = plan.to_string().parse().expect("its own text");
            assert_eq!(plan, again, "{name}");
        }
    }
}
