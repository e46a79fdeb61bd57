//! Tokens as trees, by precedence climbing.

mod calls;

use super::ast::{Kind, Node, Path, TypeName, Unary, Word};
use super::lexer::{Token, TokenKind, lex};
use super::{ExprError, Span};

/// How deep brackets and operators nest.
const MAX_DEPTH: usize = 64;

/// Parts of an expression. Postfix chains are as deep as they are long.
const MAX_NODES: usize = 400;

/// What binary operators bind, the looser the lower.
const BINARY: [(&str, u8); 18] = [
    ("||", 1),
    ("&&", 2),
    ("|", 3),
    ("^", 4),
    ("&", 5),
    ("==", 6),
    ("!=", 6),
    ("<", 7),
    (">", 7),
    ("<=", 7),
    (">=", 7),
    ("<<", 8),
    (">>", 8),
    ("+", 9),
    ("-", 9),
    ("*", 10),
    ("/", 10),
    ("%", 10),
];

/// Words that only occur in the names of types.
const TYPE_WORDS: [&str; 14] = [
    "struct", "union", "enum", "const", "volatile", "signed", "unsigned", "char", "short", "int",
    "long", "void", "_Bool", "float",
];

/// Parses an expression. `is_type` tells whether a word names a type and no variable, which is
/// asked for where C is ambiguous: `(x)*y`.
pub(super) fn parse(text: &str, is_type: &dyn Fn(&str) -> bool) -> Result<Node, ExprError> {
    let mut parser = Parser::new(text, is_type)?;
    let node = parser.expression(0)?;
    parser.end()?;
    Ok(node)
}

/// Parses the name of a type, as in a cast.
pub(super) fn parse_type(text: &str) -> Result<TypeName, ExprError> {
    let mut parser = Parser::new(text, &|_| true)?;
    let name = parser.type_name()?;
    parser.end()?;
    Ok(name)
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    nodes: usize,
    is_type: &'a dyn Fn(&str) -> bool,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str, is_type: &'a dyn Fn(&str) -> bool) -> Result<Parser<'a>, ExprError> {
        Ok(Parser {
            text,
            tokens: lex(text)?,
            at: 0,
            depth: 0,
            nodes: 0,
            is_type,
        })
    }

    fn peek_at(&self, ahead: usize) -> &TokenKind {
        let token = self.tokens.get(self.at + ahead);
        token.map_or(&TokenKind::End, |token| &token.kind)
    }

    fn peek(&self) -> &TokenKind {
        self.peek_at(0)
    }

    /// Where the next token is.
    fn span(&self) -> Span {
        let token = self.tokens.get(self.at).or(self.tokens.last());
        token.map_or(Span::at(self.text.len()), |token| token.span)
    }

    /// Where the last token ended.
    fn end_of_last(&self) -> usize {
        let last = self.at.checked_sub(1).and_then(|at| self.tokens.get(at));
        last.map_or(0, |token| token.span.end)
    }

    fn next(&mut self) -> TokenKind {
        let kind = self.peek().clone();
        self.at += 1;
        kind
    }

    fn eat(&mut self, punct: &str) -> bool {
        let found = matches!(self.peek(), TokenKind::Punct(found) if *found == punct);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, punct: &str, after: &str) -> Result<(), ExprError> {
        if self.eat(punct) {
            return Ok(());
        }
        Err(self.error(format!("a `{punct}` is missing {after}")))
    }

    fn error(&self, message: impl Into<String>) -> ExprError {
        ExprError::new(self.text, self.span(), message)
    }

    fn end(&mut self) -> Result<(), ExprError> {
        match self.peek() {
            TokenKind::End => Ok(()),
            TokenKind::Punct("=") => {
                Err(self.error("nothing is changed here, so there is no `=`; `==` compares"))
            }
            TokenKind::Punct("?") => Err(self.error("there is no `?:` here")),
            TokenKind::Punct(")" | "]") => Err(self.error("this bracket was never opened")),
            _ => Err(self.error("an operator is missing before this")),
        }
    }

    fn node(&mut self, kind: Kind, start: usize) -> Result<Node, ExprError> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(self.error(format!("the expression has more than {MAX_NODES} parts")));
        }
        let span = Span {
            start,
            end: self.end_of_last(),
        };
        Ok(Node { kind, span })
    }

    /// Runs a rule one level deeper.
    fn nested<T>(
        &mut self,
        rule: impl FnOnce(&mut Self) -> Result<T, ExprError>,
    ) -> Result<T, ExprError> {
        if self.depth >= MAX_DEPTH {
            return Err(self.error(format!("it nests more than {MAX_DEPTH} deep")));
        }
        self.depth += 1;
        let result = rule(self);
        self.depth -= 1;
        result
    }

    /// An expression of operators that bind tighter than `loosest`.
    fn expression(&mut self, loosest: u8) -> Result<Node, ExprError> {
        self.nested(|parser| {
            let mut left = parser.unary()?;
            while let TokenKind::Punct(punct) = *parser.peek()
                && let Some(&(operator, strength)) = BINARY.iter().find(|(name, _)| *name == punct)
                && strength > loosest
            {
                parser.at += 1;
                let right = parser.expression(strength)?;
                let start = left.span.start;
                let kind = Kind::Binary(operator, Box::new(left), Box::new(right));
                left = parser.node(kind, start)?;
            }
            Ok(left)
        })
    }

    fn unary(&mut self) -> Result<Node, ExprError> {
        let start = self.span().start;
        let operator = match self.peek() {
            TokenKind::Punct("*") => Unary::Deref,
            TokenKind::Punct("&") => Unary::AddressOf,
            TokenKind::Punct("-") => Unary::Minus,
            TokenKind::Punct("+") => Unary::Plus,
            TokenKind::Punct("!") => Unary::Not,
            TokenKind::Punct("~") => Unary::Complement,
            TokenKind::Punct("(") if self.is_cast() => return self.cast(start),
            TokenKind::Punct("&&") => return Err(self.error("`&&` needs something before it")),
            _ => return self.postfix(),
        };
        self.at += 1;
        let operand = self.nested(Self::unary)?;
        self.node(Kind::Unary(operator, Box::new(operand)), start)
    }

    fn cast(&mut self, start: usize) -> Result<Node, ExprError> {
        self.at += 1;
        let name = self.type_name()?;
        self.expect(")", "after the type of a cast")?;
        let operand = self.nested(Self::unary)?;
        self.node(Kind::Cast(name, Box::new(operand)), start)
    }

    /// Whether the bracket that comes next is a cast's.
    fn is_cast(&self) -> bool {
        let TokenKind::Name(word) = self.peek_at(1) else {
            return false;
        };
        if TYPE_WORDS.contains(&word.as_str()) {
            return true;
        }
        let mut ahead = 2;
        while matches!(self.peek_at(ahead), TokenKind::Punct("*")) {
            ahead += 1;
        }
        let has_stars = ahead > 2;
        // `(word (*)[4])`: nothing is called here, and least of all with a star.
        if let (TokenKind::Punct("("), TokenKind::Punct("*"), TokenKind::Punct("*" | ")")) = (
            self.peek_at(ahead),
            self.peek_at(ahead + 1),
            self.peek_at(ahead + 2),
        ) {
            return true;
        }
        while let (TokenKind::Punct("["), TokenKind::Number { .. }, TokenKind::Punct("]")) = (
            self.peek_at(ahead),
            self.peek_at(ahead + 1),
            self.peek_at(ahead + 2),
        ) {
            ahead += 3;
        }
        if !matches!(self.peek_at(ahead), TokenKind::Punct(")")) {
            return false;
        }
        // `(word *)`: no expression ends with a star.
        if has_stars {
            return true;
        }
        match self.peek_at(ahead + 1) {
            // Two operands without an operator between them.
            TokenKind::Name(_)
            | TokenKind::Dollar(_)
            | TokenKind::Scope(_)
            | TokenKind::Number { .. }
            | TokenKind::Punct("~" | "!") => true,
            TokenKind::Punct("*" | "&" | "-" | "+" | "(") => (self.is_type)(word),
            _ => false,
        }
    }

    fn postfix(&mut self) -> Result<Node, ExprError> {
        let start = self.span().start;
        let mut node = self.primary()?;
        loop {
            if self.eat(".") || self.eat("->") {
                let name = self.word("the name of a member")?;
                let kind = Kind::Member {
                    of: Box::new(node),
                    name,
                };
                node = self.node(kind, start)?;
            } else if self.eat("[") {
                let index = self.expression(0)?;
                self.expect("]", "after the index")?;
                let kind = Kind::Index {
                    of: Box::new(node),
                    index: Box::new(index),
                };
                node = self.node(kind, start)?;
            } else if matches!(self.peek(), TokenKind::Punct("(")) {
                let what = match &node.kind {
                    Kind::Name(name) => format!("`{name}` cannot be called: nothing runs here"),
                    _ => "nothing can be called here".to_owned(),
                };
                return Err(ExprError::new(self.text, node.span, what));
            } else {
                return Ok(node);
            }
        }
    }

    fn primary(&mut self) -> Result<Node, ExprError> {
        let span = self.span();
        let start = span.start;
        match self.next() {
            TokenKind::Number {
                value,
                signed,
                bytes,
            } => {
                let kind = Kind::Number {
                    value,
                    signed,
                    bytes,
                };
                self.node(kind, start)
            }
            TokenKind::Punct("(") => {
                let node = self.expression(0)?;
                self.expect(")", "after this")?;
                Ok(node)
            }
            TokenKind::Scope(scope) => {
                let name = self.word("the name of a variable")?.text;
                self.node(Kind::Scoped { scope, name }, start)
            }
            TokenKind::Dollar(name) => self.convenience(&name, span),
            TokenKind::Name(name) => self.named(name, span),
            TokenKind::End => {
                self.at -= 1;
                Err(self.error("something is missing at the end"))
            }
            TokenKind::Punct(punct) => {
                self.at -= 1;
                Err(self.error(format!("something is missing before `{punct}`")))
            }
        }
    }

    fn word(&mut self, what: &str) -> Result<Word, ExprError> {
        let span = self.span();
        match self.peek().clone() {
            TokenKind::Name(text) => {
                self.at += 1;
                Ok(Word { text, span })
            }
            _ => Err(self.error(format!("{what} is missing here"))),
        }
    }

    fn path(&mut self) -> Result<Path, ExprError> {
        let start = self.span().start;
        let mut text = self.word("the name of a member")?.text;
        loop {
            if self.eat(".") {
                text.push('.');
                text.push_str(&self.word("the name of a member")?.text);
            } else if self.eat("[") {
                let TokenKind::Number { value, .. } = *self.peek() else {
                    return Err(self.error("an index must be a number here"));
                };
                self.at += 1;
                self.expect("]", "after the index")?;
                text.push_str(&format!("[{value}]"));
            } else {
                let span = Span {
                    start,
                    end: self.end_of_last(),
                };
                return Ok(Path { text, span });
            }
        }
    }

    /// `struct task_struct *`, `unsigned long`, `u8 [16]`.
    fn type_name(&mut self) -> Result<TypeName, ExprError> {
        let start = self.span().start;
        let mut words = Vec::new();
        while let TokenKind::Name(word) = self.peek() {
            let is_qualifier = matches!(word.as_str(), "const" | "volatile" | "__user");
            let word = word.clone();
            let tagged = matches!(
                words.last().map(String::as_str),
                Some("struct" | "union" | "enum")
            );
            let may_follow = words.is_empty()
                || tagged
                || is_qualifier
                || words.iter().all(|word| TYPE_WORDS.contains(&word.as_str()))
                    && TYPE_WORDS.contains(&word.as_str());
            if !may_follow {
                break;
            }
            self.at += 1;
            if !is_qualifier {
                words.push(word);
            }
        }
        if words.is_empty() {
            return Err(self.error("the name of a type is missing here"));
        }
        if let [keyword @ ("struct" | "union" | "enum")] =
            words.iter().map(String::as_str).collect::<Vec<_>>()[..]
        {
            return Err(self.error(format!("the name of the {keyword} is missing")));
        }
        let mut stars = 0_u32;
        loop {
            if self.eat("*") {
                stars += 1;
            } else if !self.qualifier() {
                break;
            }
        }
        let mut inner_stars = 0_u32;
        if matches!(self.peek(), TokenKind::Punct("("))
            && matches!(self.peek_at(1), TokenKind::Punct("*"))
        {
            self.at += 1;
            while self.eat("*") {
                inner_stars += 1;
            }
            self.expect(")", "after the star: TYPE (*)[4]")?;
            if !matches!(self.peek(), TokenKind::Punct("[")) {
                return Err(self.error("the length of the array is missing: TYPE (*)[4]"));
            }
        }
        if stars + inner_stars > 16 {
            return Err(self.error("so many stars mean nothing"));
        }
        let mut counts = Vec::new();
        while self.eat("[") {
            let TokenKind::Number { value, .. } = *self.peek() else {
                return Err(self.error("the length of the array is missing"));
            };
            self.at += 1;
            self.expect("]", "after the length of the array")?;
            counts.push(value);
        }
        if counts.len() > 8 {
            return Err(self.error("so many dimensions mean nothing"));
        }
        let span = Span {
            start,
            end: self.end_of_last(),
        };
        Ok(TypeName {
            base: words.join(" "),
            stars,
            inner_stars,
            counts,
            span,
        })
    }

    fn qualifier(&mut self) -> bool {
        let found = matches!(self.peek(), TokenKind::Name(word)
            if matches!(word.as_str(), "const" | "volatile" | "__user" | "__iomem" | "__rcu"));
        self.at += usize::from(found);
        found
    }
}
