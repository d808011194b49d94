//! The structure of nft(8)'s text: tables, blocks and items. An item is a rule, or a statement of another block.
//!
//! Comments disappear here, and no item contains a line break, `;` or `$`. So a command that is made of one item cannot
//! become several commands, whatever the text contains.
//!
//! Source: src/scanner.l and src/parser_bison.y of nftables 1.0.6.

use std::borrow::Cow;

use super::error::TextError;
use crate::ruleset::table::TableFamily;

/// The largest depth of braces in an item.
const DEEPEST: usize = 8;

/// A part of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// Characters without white space, quotes, braces and `;`.
    Word(&'a str),
    /// The characters between two quotes.
    Quoted(&'a str),
    /// `{`
    Open,
    /// `}`
    Close,
}

/// A rule, or a statement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Item<'a> {
    /// The number of the first line.
    pub(super) line: usize,
    pub(super) tokens: Vec<Token<'a>>,
    /// The handle, if the text has handles.
    pub(super) handle: Option<u64>,
    /// True if nft could not print a part of the rule, because it belongs to an extension of iptables.
    pub(super) xt: bool,
    /// The reason that nft cannot load the item.
    pub(super) broken: Option<Cow<'static, str>>,
}

impl<'a> Item<'a> {
    /// Returns the first token if it is a word.
    pub(super) fn first(&self) -> Option<&'a str> {
        match self.tokens.first() {
            Some(Token::Word(word)) => Some(word),
            _ => None,
        }
    }

    /// Returns the item on one line.
    pub(super) fn text(&self) -> String {
        render(&self.tokens)
    }
}

/// Returns tokens on one line.
pub(super) fn render(tokens: &[Token<'_>]) -> String {
    let mut text = String::new();
    for token in tokens {
        text.push_str(if text.is_empty() { "" } else { " " });
        match token {
            Token::Word(word) => text.push_str(word),
            Token::Quoted(inside) => text.extend(["\"", inside, "\""]),
            Token::Open => text.push('{'),
            Token::Close => text.push('}'),
        }
    }
    text
}

/// A chain, a set, or another block of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Block<'a> {
    /// The words before `{`.
    pub(super) head: Item<'a>,
    pub(super) items: Vec<Item<'a>>,
    /// True if nft refused the block, or the hook of a chain.
    pub(super) refused: bool,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table<'a> {
    pub(super) line: usize,
    pub(super) family: TableFamily,
    pub(super) name: &'a str,
    pub(super) blocks: Vec<Block<'a>>,
    /// The statements outside of blocks.
    pub(super) items: Vec<Item<'a>>,
}

/// Returns true if a name needs no quotes.
pub(super) fn is_name(name: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte);
    name.starts_with(|first: char| first.is_ascii_alphabetic() || "_.".contains(first)) && name.bytes().all(inside)
}

/// Parses a text.
///
/// # Errors
/// [`TextError`] if something is outside of tables, or if the text contains a command that reads a file or sets a variable.
pub(super) fn parse(text: &str) -> Result<Vec<Table<'_>>, TextError> {
    let mut parser = Parser::default();
    for (at, line) in text.lines().enumerate() {
        parser.line(at + 1, line)?;
    }
    parser.end()
}

/// The words that no item may contain: commands that read files or set variables. nft(8) allows them in blocks too.
const REFUSED: [&str; 4] = ["include", "define", "redefine", "undefine"];

#[derive(Default)]
struct Parser<'a> {
    tables: Vec<Table<'a>>,
    /// True inside of the last table.
    in_table: bool,
    block: Option<Block<'a>>,
    item: Item<'a>,
    /// The open braces of the item.
    depth: usize,
}

impl<'a> Parser<'a> {
    fn line(&mut self, number: usize, mut rest: &'a str) -> Result<(), TextError> {
        loop {
            rest = rest.trim_ascii_start();
            if self.item.tokens.is_empty() {
                self.item.line = number;
            }
            let Some(first) = rest.chars().next() else { break };
            let mut length = first.len_utf8();
            match first {
                '#' => {
                    self.comment(rest);
                    break;
                }
                '{' => self.open()?,
                '}' => self.close(number)?,
                ';' if self.depth > 0 => self.refuse("it contains a block of statements"),
                ';' => self.separator()?,
                '"' => match rest.get(1..).and_then(|rest| rest.split_once('"')) {
                    Some((inside, _)) => {
                        self.item.tokens.push(Token::Quoted(inside));
                        length = inside.len() + 2;
                    }
                    None => {
                        self.refuse("a quote is not closed");
                        break;
                    }
                },
                _ => {
                    length = rest
                        .find(|next: char| next.is_ascii_whitespace() || "{};\"#".contains(next))
                        .unwrap_or(rest.len());
                    self.word(number, rest.get(..length).unwrap_or_default())?;
                }
            }
            rest = rest.get(length..).unwrap_or_default();
        }
        if self.depth == 0 { self.separator() } else { Ok(()) }
    }

    fn word(&mut self, line: usize, word: &'a str) -> Result<(), TextError> {
        let mut names = word.split(|next: char| !(next.is_ascii_alphanumeric() || "_-./".contains(next)));
        if word.contains('$') || names.any(|name| REFUSED.contains(&name)) {
            return Err(TextError::Command { line, word: word.to_owned() });
        }
        if !word.bytes().all(|byte| byte.is_ascii_graphic() && !b"\\`'".contains(&byte)) {
            self.refuse("it contains a character that nft does not print outside of quotes");
        }
        self.item.tokens.push(Token::Word(word));
        Ok(())
    }

    fn refuse(&mut self, why: &'static str) {
        self.item.broken.get_or_insert(why.into());
    }

    /// Handles `# handle 5`, and `# xt_DNAT` of nft before 1.0.
    fn comment(&mut self, comment: &str) {
        let handle = comment.rsplit_once("# handle ").and_then(|(_, number)| number.trim_ascii().parse().ok());
        let item = match &mut self.block {
            Some(block) if self.item.tokens.is_empty() && block.items.is_empty() => &mut block.head,
            _ if self.item.tokens.is_empty() => return,
            _ => &mut self.item,
        };
        item.handle = handle.or(item.handle);
        item.xt |= comment.contains("# xt_");
    }

    fn open(&mut self) -> Result<(), TextError> {
        if self.block.is_some() {
            self.depth += 1;
            if self.depth > DEEPEST {
                self.refuse("it has too many nested braces");
            }
            if matches!(self.item.tokens.last(), Some(Token::Word("jump" | "goto"))) {
                self.refuse("it contains an anonymous chain");
            }
            self.item.tokens.push(Token::Open);
        } else if self.in_table {
            self.block = Some(Block { head: std::mem::take(&mut self.item), ..Block::default() });
        } else {
            let head = std::mem::take(&mut self.item);
            self.tables.push(table(&head)?);
            self.in_table = true;
        }
        Ok(())
    }

    fn close(&mut self, line: usize) -> Result<(), TextError> {
        if self.depth > 0 {
            self.depth -= 1;
            self.item.tokens.push(Token::Close);
            return Ok(());
        }
        self.separator()?;
        match (self.block.take(), self.tables.last_mut().filter(|_| self.in_table)) {
            (Some(block), Some(table)) => table.blocks.push(block),
            (_, Some(_)) => self.in_table = false,
            (_, None) => return Err(TextError::Shape { line, why: "this `}` closes nothing" }),
        }
        Ok(())
    }

    /// Ends an item.
    fn separator(&mut self) -> Result<(), TextError> {
        let item = std::mem::take(&mut self.item);
        if item.tokens.is_empty() && item.broken.is_none() {
            return Ok(());
        }
        match (&mut self.block, self.tables.last_mut().filter(|_| self.in_table)) {
            (Some(block), _) => block.items.push(item),
            (None, Some(table)) => table.items.push(item),
            (None, None) => return Err(TextError::Command { line: item.line, word: item.text() }),
        }
        Ok(())
    }

    fn end(self) -> Result<Vec<Table<'a>>, TextError> {
        match self.tables.last() {
            Some(table) if self.in_table => Err(TextError::Shape {
                line: table.line,
                why: "the `{` of this table is not closed: the text was cut off",
            }),
            _ => Ok(self.tables),
        }
    }
}

/// Reads `table inet nat`.
fn table<'a>(head: &Item<'a>) -> Result<Table<'a>, TextError> {
    use TableFamily::{Arp, Bridge, Inet, Ip, Ip6, Netdev};
    let (family, name) = match head.tokens.as_slice() {
        [Token::Word("table"), Token::Word(name)] => (Some(Ip), *name),
        [Token::Word("table"), Token::Word(family), Token::Word(name)] => {
            ([Ip, Ip6, Inet, Arp, Bridge, Netdev].into_iter().find(|known| known.name() == *family), *name)
        }
        _ => return Err(TextError::Command { line: head.line, word: head.text() }),
    };
    match family.filter(|_| is_name(name)) {
        Some(family) => Ok(Table { line: head.line, family, name, blocks: Vec::new(), items: Vec::new() }),
        None => Err(TextError::Shape { line: head.line, why: "a table has a family and a name" }),
    }
}
