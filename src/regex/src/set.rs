//! Several expressions that are matched against one text, one after the other.

use crate::{Error, Regex};

/// Expressions, each with a number: its place in the order in which they were given.
#[derive(Clone, Debug, Default)]
pub struct RegexSet(Vec<Regex>);

impl RegexSet {
    /// Fails with the error of the first expression that is not one.
    pub fn new<I, S>(expressions: I) -> Result<Self, Error>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<str>,
    {
        expressions
            .into_iter()
            .map(|one| Regex::new(one.as_ref()))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether any of them matches somewhere in `text`.
    #[must_use]
    pub fn is_match(&self, text: &str) -> bool {
        self.0.iter().any(|one| one.is_match(text))
    }

    /// Which of them match somewhere in `text`.
    #[must_use]
    pub fn matches(&self, text: &str) -> SetMatches {
        SetMatches((0..self.0.len()).filter(|number| self.0[*number].is_match(text)).collect())
    }
}

/// The numbers of the expressions that matched, in ascending order.
#[derive(Clone, Debug)]
pub struct SetMatches(Vec<usize>);

impl SetMatches {
    /// Whether there are any.
    #[must_use]
    pub fn matched_any(&self) -> bool {
        !self.0.is_empty()
    }

    /// The numbers.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().copied()
    }
}

impl IntoIterator for SetMatches {
    type Item = usize;
    type IntoIter = std::vec::IntoIter<usize>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_names_the_expressions_that_match() {
        let set = RegexSet::new(["^(a.*)$", "^(b)$", "^(.*c)$"]).expect("they are expressions");
        assert_eq!(set.matches("abc").iter().collect::<Vec<_>>(), [0, 2]);
        assert!(set.is_match("b") && !set.is_match("bb"));
        assert!(!set.matches("bb").matched_any());
    }

    #[test]
    fn a_set_of_nothing_matches_nothing() {
        assert!(!RegexSet::default().is_match(""));
    }

    #[test]
    fn an_expression_that_is_not_one_is_an_error() {
        assert!(RegexSet::new(["a", "("]).is_err());
    }
}
