//! Routes of a Spin app: `/`, `/users/:id`, `/files/...`.
#![forbid(unsafe_code)]

use std::cmp::Ordering;

/// The longest route, in bytes.
const LONGEST: usize = 1024;

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pattern {
    segments: Vec<Segment>,
    /// Whether it ends in `/...`, which matches any rest.
    rest: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Segment {
    Text(String),
    /// `:NAME`, which matches one segment that is not empty.
    Parameter(String),
}

/// What a route has found in a path.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Found {
    pub parameters: Vec<(String, String)>,
    /// The part that `/...` stands for, with its slash.
    pub rest: String,
}

impl Pattern {
    pub fn parse(route: &str) -> Result<Pattern, String> {
        let wrong = |why: &str| Err(format!("the route `{route}` {why}"));
        if route.len() > LONGEST {
            return Err(format!("a route has more than {LONGEST} bytes"));
        }
        let Some(path) = route.strip_prefix('/') else { return wrong("does not begin with `/`") };
        if path.chars().any(|c| c.is_control() || c.is_whitespace() || matches!(c, '?' | '#' | '*'))
        {
            return wrong("contains a character that no path matches");
        }
        let mut names: Vec<&str> = split(path).collect();
        let rest = names.last() == Some(&"...");
        if rest {
            names.pop();
        }
        let mut segments = Vec::new();
        for name in names {
            segments.push(match name.strip_prefix(':') {
                _ if name.is_empty() => return wrong("has an empty segment"),
                _ if name.contains("...") => {
                    return wrong("has `...` that is not its last segment");
                }
                Some("") => return wrong("has a parameter without a name"),
                Some(parameter) => Segment::Parameter(parameter.to_owned()),
                None => Segment::Text(name.to_owned()),
            });
        }
        Ok(Pattern { segments, rest })
    }

    /// Whether it matches the same paths as another one.
    pub fn is_like(&self, other: &Pattern) -> bool {
        self.compare(other) == Ordering::Equal
    }

    /// The order in which routes are tried: in each segment, a text goes before a parameter, and a
    /// parameter before `...`. Routes that match the same paths are equal.
    pub fn compare(&self, other: &Pattern) -> Ordering {
        let key = |pattern: &Pattern| -> Vec<(u8, String)> {
            let segments = pattern.segments.iter().map(|segment| match segment {
                Segment::Text(text) => (1, text.clone()),
                Segment::Parameter(_) => (2, String::new()),
            });
            let end = if pattern.rest { 3 } else { 0 };
            segments.chain([(end, String::new())]).collect()
        };
        key(self).cmp(&key(other))
    }

    /// Matches a path, without its query. A slash at the end makes no difference.
    pub fn find(&self, path: &str) -> Option<Found> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let mut names = split(path);
        let mut found = Found::default();
        let mut used = 0;
        for segment in &self.segments {
            let name = names.next()?;
            used += name.len() + 1;
            match segment {
                Segment::Text(text) if text == name => {}
                Segment::Parameter(parameter) if !name.is_empty() => {
                    found.parameters.push((parameter.clone(), name.to_owned()));
                }
                _ => return None,
            }
        }
        if !self.rest {
            return names.next().is_none().then_some(found);
        }
        found.rest = match used.checked_sub(1) {
            None => format!("/{path}"),
            Some(used) => path.get(used..).unwrap_or_default().to_owned(),
        };
        Some(found)
    }
}

fn split(path: &str) -> impl Iterator<Item = &str> {
    let path = path.strip_suffix('/').unwrap_or(path);
    path.split('/').filter(move |_| !path.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(route: &str) -> Pattern {
        Pattern::parse(route).expect(route)
    }

    #[test]
    fn a_path_matches_by_this_table() {
        for (route, path, rest) in [
            ("/", "/", Some("")),
            ("/", "", Some("")),
            ("/", "/a", None),
            ("/...", "/", Some("/")),
            ("/...", "/a/b/", Some("/a/b/")),
            ("/a", "/a", Some("")),
            ("/a", "/a/", Some("")),
            ("/a", "/a/b", None),
            ("/a", "/ab", None),
            ("/a/", "/a", Some("")),
            ("/a/...", "/a", Some("")),
            ("/a/...", "/a/", Some("/")),
            ("/a/...", "/a/b/c", Some("/b/c")),
            ("/a/...", "/a//c", Some("//c")),
            ("/a/...", "/ab", None),
            ("/:x/b", "/a/b", Some("")),
            ("/:x/b", "//b", None),
            ("/:x/...", "/", None),
        ] {
            let found = pattern(route).find(path);
            assert_eq!(found.map(|found| found.rest).as_deref(), rest, "{route} {path}");
        }
        let found = pattern("/u/:id/:what/...").find("/u/7/photos/2/3").expect("found");
        let parameters = [("id", "7"), ("what", "photos")].map(|(a, b)| (a.into(), b.into()));
        assert_eq!(found, Found { parameters: parameters.into(), rest: "/2/3".into() });
    }

    #[test]
    fn a_narrow_route_goes_first() {
        let sorted = ["/", "/a", "/a/b", "/a/:x", "/a/...", "/:x", "/:x/b", "/..."];
        let mut routes = sorted;
        routes.reverse();
        routes.sort_by(|one, other| pattern(one).compare(&pattern(other)));
        assert_eq!(routes, sorted);
    }

    #[test]
    fn routes_for_the_same_paths_are_alike() {
        for (one, other, alike) in [
            ("/a", "/a/", true),
            ("/:x", "/:y", true),
            ("/a/...", "/a/.../", true),
            ("/a", "/a/...", false),
            ("/a", "/:x", false),
        ] {
            assert_eq!(pattern(one).is_like(&pattern(other)), alike, "{one} {other}");
        }
    }

    #[test]
    fn what_matches_nothing_is_refused() {
        let long = format!("/{}", "a".repeat(LONGEST));
        for route in
            ["", "a", "/a//b", "/.../a", "/a...", "/:", "/a?b", "/a#b", "/a b", "/a/*", &long]
        {
            assert!(Pattern::parse(route).is_err(), "{route}");
        }
    }
}
