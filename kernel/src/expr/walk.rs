//! Lists: from a head to its elements.

use super::ast::{Node, Path, TypeName};
use super::eval::{Evaluator, Failure, number};
use super::lists;
use super::{Operand, Place, Space, Span};
use crate::addr::KernelAddr;
use crate::layout::{Bare, Type};
use crate::memory::Memory;
use crate::reader::Object;

/// What of a list's kind decides how it is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A ring through its head.
    Ring,
    /// A chain that ends with a null pointer.
    Chain,
    /// A red-black tree.
    Tree,
}

/// A head that was found.
struct Head {
    kind: Kind,
    /// Of a tree, its `rb_root`.
    addr: KernelAddr,
    member: Option<(String, String)>,
}

impl<M: Memory> Evaluator<'_, M> {
    /// `list(HEAD, TYPE, MEMBER)` and `list(HEAD)`.
    pub(super) fn list(
        &self,
        head: &Node,
        of: Option<&(TypeName, Path)>,
    ) -> Result<Operand, Failure> {
        let span = head.span;
        let head = self.head(self.eval(head)?, span)?;
        let Some((name, path)) = of else {
            let Some((element, link)) = self.known(&head) else {
                let message = "what hangs in this list is not known here: \
                               list(HEAD, struct TYPE, MEMBER)";
                return Err(self.error(span, message));
            };
            return self.walk(&head, &element, &link);
        };
        let ty = self.resolve(name)?;
        let owner = self.spell(&ty);
        // An error with its place, before the walk finds out.
        self.offset_of(name, path)?;
        self.walk(&head, &owner, &path.text)
    }

    /// The elements of a list whose head is printed, when it is known what they are.
    ///
    /// # Errors
    ///
    /// When the walk cannot begin.
    pub(crate) fn elements_of(&self, place: &Place) -> Result<Option<Operand>, Failure> {
        let whole = Span {
            start: 0,
            end: self.text.len(),
        };
        let Ok(head) = self.head(Operand::Place(place.clone()), whole) else {
            return Ok(None);
        };
        match self.known(&head) {
            Some((element, link)) => self.walk(&head, &element, &link).map(Some),
            None => Ok(None),
        }
    }

    /// Whether it is the head (or a link) of a list.
    pub(crate) fn is_list(&self, place: &Place) -> bool {
        let whole = Span::at(0);
        self.head(Operand::Place(place.clone()), whole).is_ok()
    }

    fn head(&self, operand: Operand, span: Span) -> Result<Head, Failure> {
        let (ty, addr, space, member) = match operand {
            Operand::Place(place) if self.pointee(&place.ty)?.is_none() => {
                (place.ty, place.addr, place.space, place.member)
            }
            operand => {
                let pointer = self.number(operand, span)?;
                let Some(target) = self.pointee(&pointer.ty)? else {
                    let ty = self.spell(&pointer.ty);
                    return Err(self.error(span, format!("this is a `{ty}`, and no list")));
                };
                (target, pointer.value, pointer.space, None)
            }
        };
        if space != Space::Kernel {
            return Err(self.error(span, "only the kernel's own lists can be walked"));
        }
        let bare = self.layout.bare(&ty)?;
        let name = match &bare {
            Bare::Aggregate(info) => info.name.as_deref().unwrap_or_default(),
            _ => "",
        };
        let (kind, offset) = match name {
            "list_head" => (Kind::Ring, 0),
            // All of them begin with a pointer to the first, and their links with one to the next.
            "hlist_head" | "hlist_nulls_head" | "llist_head" => (Kind::Chain, 0),
            "rb_root" => (Kind::Tree, 0),
            "rb_root_cached" => {
                let root = self.layout.member("struct rb_root_cached", "rb_root")?;
                (Kind::Tree, root.offset)
            }
            _ => {
                let ty = self.spell(&ty);
                let message = format!(
                    "this is a `{ty}`, and no list: list_head, hlist_head, hlist_nulls_head, \
                     llist_head, rb_root, rb_root_cached"
                );
                return Err(self.error(span, message));
            }
        };
        Ok(Head {
            kind,
            addr: KernelAddr(addr) + offset,
            member,
        })
    }

    /// What is known to hang in a head, of what this kernel has.
    fn known(&self, head: &Head) -> Option<(String, String)> {
        let (owner, member) = head.member.as_ref()?;
        let mut known = lists::known(owner, member);
        known.find_map(|known| {
            let element = format!("struct {}", known.element);
            let has = self.layout.has_member(&element, known.link);
            has.then(|| (element, known.link.to_owned()))
        })
    }

    fn walk(&self, head: &Head, owner: &str, link: &str) -> Result<Operand, Failure> {
        let reader = self.reader;
        let ty = Type::Known(self.layout.type_named(owner)?).pointer();
        let item = |object: Object<'_, M>| number(ty.clone(), object.addr().get(), Space::Kernel);
        let limit = self.context.limit;
        let mut items: Vec<Operand> = match head.kind {
            Kind::Ring => {
                let list = reader.list(head.addr, owner, link, "list")?;
                list.take(limit.saturating_add(1)).map(item).collect()
            }
            Kind::Chain => {
                let list = reader.hlist(head.addr, owner, link, "list")?;
                list.take(limit.saturating_add(1)).map(item).collect()
            }
            Kind::Tree => {
                let tree = reader.tree(head.addr, owner, link, "tree")?;
                tree.take(limit.saturating_add(1)).map(item).collect()
            }
        };
        let more = items.len() > limit;
        items.truncate(limit);
        Ok(Operand::List { items, more })
    }

    /// Bytes of a member from the start of a type.
    pub(super) fn offset_of(&self, name: &TypeName, path: &Path) -> Result<u64, Failure> {
        let ty = self.resolve(name)?;
        let Bare::Aggregate(_) = self.layout.bare(&ty)? else {
            let ty = self.spell(&ty);
            return Err(self.error(name.span, format!("`{ty}` has no members")));
        };
        let owner = self.spell(&ty);
        let found = self.layout.member(&owner, &path.text);
        let member = found.map_err(|error| self.error(path.span, error.to_string()))?;
        Ok(member.offset)
    }
}
