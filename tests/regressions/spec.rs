//! The text forms of the model: what is read prints a text that is read as the same.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use portfwd::model::error::is_hidden;
use portfwd::model::{
    ChainName, Comment, Forward, IfName, Listen, Mode, Packet, ParseError, Pool, PortRange, Ports, Protocol, SetName,
    Source, Target, prefix,
};

/// Takes any bytes; those that are two lines of text are a forward besides.
pub fn holds(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    for line in text.lines() {
        goes_both_ways::<Listen>(line);
        goes_both_ways::<Target>(line);
        goes_both_ways::<Ports>(line);
        goes_both_ways::<PortRange>(line);
        goes_both_ways::<Protocol>(line);
        goes_both_ways::<Source>(line);
        goes_both_ways::<Pool>(line);
        goes_both_ways::<Mode>(line);
        goes_both_ways::<IfName>(line);
        goes_both_ways::<SetName>(line);
        goes_both_ways::<ChainName>(line);
        goes_both_ways::<Comment>(line);
        goes_both_ways::<Packet>(line);
        both_ways(line, prefix::parse);
    }
    if let Some((listen, to)) = text.split_once('\n')
        && let (Ok(listen), Ok(to)) = (listen.parse(), to.parse())
    {
        has_a_normal_form(&Forward::new(listen, to));
    }
}

fn goes_both_ways<T: FromStr<Err = ParseError> + Display + Debug + PartialEq>(text: &str) {
    both_ways(text, str::parse::<T>);
}

fn both_ways<T: Display + Debug + PartialEq>(text: &str, parse: impl Fn(&str) -> Result<T, ParseError>) {
    match parse(text) {
        Ok(value) => {
            let printed = value.to_string();
            assert_eq!(parse(&printed).as_ref(), Ok(&value), "{text:?} prints as {printed:?}");
        }
        Err(error) => is_printable(&error),
    }
}

/// What is said of a text must not do to a terminal what the text would.
fn is_printable(error: &ParseError) {
    assert!(!error.to_string().contains(is_hidden) && !error.help().contains(is_hidden), "{error:?}");
}

/// Each atom's ports and protocols were written, and they are as many as were written.
fn has_a_normal_form(forward: &Forward) {
    match forward.bindings() {
        Ok(atoms) => {
            assert!(!atoms.is_empty(), "{forward:?}");
            for atom in atoms {
                let written = forward.listen.ports.ranges();
                assert!(written.iter().any(|range| range.contains(atom.ports)), "{atom} of {forward:?}");
                // Whatever its port is sent to, there is such a port.
                for port in [atom.ports.first(), atom.ports.last()] {
                    assert!(atom.target_port(port) > 0, "{atom} of {forward:?}");
                }
            }
        }
        Err(error) => is_printable(&error),
    }
}
