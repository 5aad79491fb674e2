//! The annotations that list the ports that a module may use: `docs/annotations.md`, "Modules".
#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use anyhow::{Context, Result, ensure};

use crate::linux::ports::Allowed;

/// Parses a list of TCP and UDP ports: `tcp/PORT`, `udp/FIRST-LAST`, separated by commas.
pub(super) fn parse(value: &str, lowest: u16) -> Result<(Allowed, Allowed)> {
    let (mut tcp, mut udp) = (Vec::new(), Vec::new());
    for entry in value.split(',').filter(|_| !value.is_empty()) {
        let (list, ports) = match entry.split_at_checked(4) {
            Some(("tcp/", ports)) => (&mut tcp, range(ports)),
            Some(("udp/", ports)) => (&mut udp, range(ports)),
            _ => (&mut tcp, None),
        };
        let ports = ports.with_context(|| {
            format!("`{entry}` is not `tcp/PORT`, `udp/PORT` or a range such as `tcp/80-89`")
        })?;
        ensure!(*ports.start() >= lowest, "`{entry}`: nothing can be reached at port 0");
        add(list, ports);
    }
    let all = [lowest..=u16::MAX];
    Ok(((tcp != all).then_some(tcp), (udp != all).then_some(udp)))
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then_some(first..=last)
}

fn port(text: &str) -> Option<u16> {
    // The parser would accept a sign.
    text.parse().ok().filter(|_| !text.starts_with('+'))
}

/// Merges a range with all ranges that it touches. These did not touch any other range, so the
/// merged range does not either.
fn add(list: &mut Vec<RangeInclusive<u16>>, range: RangeInclusive<u16>) {
    let (mut first, mut last) = range.into_inner();
    list.retain(|other| {
        let apart =
            *other.start() > last.saturating_add(1) || other.end().saturating_add(1) < first;
        if !apart {
            (first, last) = (first.min(*other.start()), last.max(*other.end()));
        }
        apart
    });
    list.push(first..=last);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_are_one() {
        let parse = |value| parse(value, 0).expect(value);
        assert_eq!(parse("tcp/80"), (Some(vec![80..=80]), Some(vec![])));
        assert_eq!(parse(""), (Some(vec![]), Some(vec![])));
        let (tcp, udp) =
            parse("udp/53,tcp/8005-8010,tcp/8000-8005,tcp/8011,tcp/0,udp/60-70,udp/61");
        assert_eq!(tcp, Some(vec![8000..=8011, 0..=0]));
        assert_eq!(udp, Some(vec![53..=53, 60..=70]));
        assert_eq!(parse("tcp/5,tcp/1,tcp/9,tcp/2-8").0, Some(vec![1..=9]));
        assert_eq!(parse("tcp/0-65535"), (None, Some(vec![])));
        assert_eq!(parse("udp/0-100,udp/101-65535"), (Some(vec![]), None));
    }

    #[test]
    fn what_is_no_port_is_an_error() {
        for wrong in [
            "tcp",
            "80",
            "tcp/",
            "tcp/x",
            "tcp/+80",
            "tcp/-80",
            "tcp/80-",
            "tcp/9-8",
            "tcp/65536",
            "sctp/80",
            "TCP/80",
            "tcp/80,",
            "tcp/80, udp/53",
            "tcp/80/81",
            "tcp/1-2-3",
        ] {
            assert!(parse(wrong, 0).is_err(), "{wrong}");
        }
        assert!(parse("tcp/0", 1).is_err());
        assert_eq!(parse("tcp/1-65535", 1).expect("all"), (None, Some(vec![])));
    }
}
