//! Collections: sets with an order, and replacing what was found.

mod outline;

use std::cell::RefCell;
use std::error::Error as StdError;

use mpath::{
    ApplyOptions, Class, ErrorKind, Facts, MPathCollection, Node, Replace, SearchOptions, TagSet,
    search,
};
use outline::{Handle, Tree, context};

const TREE: &str = "
a
  x: L
  y: L
b
  x: L
";

fn find<'t>(tree: &'t Tree, query: &str) -> MPathCollection<Handle<'t>> {
    search(query, tree.root(), &SearchOptions::new(&context())).unwrap()
}

fn names<N: Node>(found: &MPathCollection<N>) -> Vec<&str> {
    found.iter().map(|result| result.full_name()).collect()
}

#[test]
fn set_operations_keep_the_order_of_the_left_operand() {
    let tree = Tree::parse(TREE);
    let (all, xs, a) = (find(&tree, "*/*"), find(&tree, "*/x"), find(&tree, "a/**"));
    assert_eq!(names(&all), ["b.x", "a.x", "a.y"]);
    assert_eq!(names(&xs), ["b.x", "a.x"]);
    assert_eq!(names(&a), ["a", "a.x", "a.y"]);
    assert_eq!(names(&xs.union(&a).unwrap()), ["b.x", "a.x", "a", "a.y"]);
    assert_eq!(names(&a.union(&xs).unwrap()), ["a", "a.x", "a.y", "b.x"]);
    assert_eq!(names(&all.intersection(&a).unwrap()), ["a.x", "a.y"]);
    assert_eq!(names(&all.difference(&xs).unwrap()), ["a.y"]);
    assert_eq!(names(&xs.symmetric_difference(&a).unwrap()), ["b.x", "a", "a.y"]);
    let mut twice = xs.clone();
    twice.append(xs[0].clone());
    assert_eq!(names(&twice), ["b.x", "a.x", "b.x"]);
    assert_eq!(twice.union(&xs).unwrap(), xs);
}

#[test]
fn different_roots_are_refused_by_the_name_of_the_operation() {
    let (one, two) = (Tree::parse(TREE), Tree::parse(TREE));
    let (left, right) = (find(&one, "**"), find(&two, "**"));
    for (error, name) in [
        (left.union(&right), "union"),
        (left.intersection(&right), "intersection"),
        (left.difference(&right), "difference"),
        (left.symmetric_difference(&right), "symmetric difference"),
    ] {
        let error = error.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DifferentRoots);
        assert!(error.to_string().starts_with(&format!("cannot form the {name}: ")), "{error}");
    }
    assert_ne!(left, right);
}

#[test]
fn sequences() {
    let tree = Tree::parse(TREE);
    let mut found = find(&tree, "**");
    assert_eq!(found.len(), 5);
    assert_eq!(names(&found.slice(1..3)), ["b", "b.x"]);
    assert_eq!(names(&found.slice(4..100)), ["a.y"]);
    assert_eq!(found.slice(7..).len(), 0);
    assert_eq!(found.remove(0).unwrap().full_name(), "a");
    assert!(found.remove(4).is_none());
    assert_eq!(found[0].parent_attribute(), "b");
    assert_eq!(
        found.map(|name, node| format!("{name}:{}", node.class())),
        ["b:Module", "b.x:L", "a.x:L", "a.y:L"]
    );
    assert!(found.parents().all(|(parent, child)| {
        let mut is_child = false;
        parent.for_each_child(&mut |_, node| is_child |= node == child);
        is_child
    }));
    assert_eq!(found.named_modules().count(), found.modules().count());
}

#[test]
fn printing() {
    let tree = Tree::parse(TREE);
    assert_eq!(find(&tree, "nothing").to_string(), "MPathCollection([])");
    let found = find(&tree, "a/*");
    assert_eq!(found.to_string(), "MPathCollection([\n    <0: a.x: L>,\n    <1: a.y: L>,\n])");
    assert_eq!(found[0].to_string(), "FilterResult(name=a.x, type=L)");
    let fragments: Vec<String> =
        found[0].fragment_matches().iter().map(|f| f.to_string()).collect();
    assert_eq!(fragments, ["a", "*"]);
}

/// A tree of one level whose children can be replaced: a handle is a number, the root 0.
struct Numbers(RefCell<Vec<usize>>);

#[derive(Clone, Copy)]
struct Number<'t>(&'t Numbers, usize);

impl PartialEq for Number<'_> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0) && self.1 == other.1
    }
}

impl Facts for Number<'_> {
    fn class(&self) -> Class {
        outline::class("Module")
    }
    fn tags(&self) -> Option<TagSet> {
        None
    }
}

impl Node for Number<'_> {
    fn for_each_child(&self, visit: &mut dyn FnMut(&str, Self)) {
        if self.1 == 0 {
            for (i, number) in self.0.0.borrow().iter().enumerate() {
                visit(&i.to_string(), Number(self.0, *number));
            }
        }
    }
}

struct Editor;

impl<'t> Replace<Number<'t>> for Editor {
    type New = usize;

    fn child(&self, parent: Number<'t>, attribute: &str) -> Option<Number<'t>> {
        let numbers = parent.0.0.borrow();
        Some(Number(parent.0, *numbers.get(attribute.parse::<usize>().ok()?)?))
    }

    fn replace(
        &mut self,
        parent: Number<'t>,
        attribute: &str,
        new: usize,
    ) -> Result<Number<'t>, Box<dyn StdError + Send + Sync>> {
        if new == 13 {
            return Err("13 is not allowed".into());
        }
        parent.0.0.borrow_mut()[attribute.parse::<usize>()?] = new;
        Ok(Number(parent.0, new))
    }
}

#[test]
fn apply_replaces_safely_or_not_at_all() {
    let numbers = Numbers(RefCell::new(vec![1, 2, 3]));
    let mut found = search("*", Number(&numbers, 0), &SearchOptions::new(&context())).unwrap();
    let safe = ApplyOptions::default();

    found.apply(&mut Editor, safe, |_, node| (node.1 != 2).then_some(node.1 * 10)).unwrap();
    assert_eq!(*numbers.0.borrow(), [10, 2, 30]);
    assert_eq!(found.map(|_, node| node.1), [10, 2, 30]);

    let mut called = Vec::new();
    let dry = ApplyOptions { update: false, ..safe };
    found
        .apply(&mut Editor, dry, |name, _| {
            called.push(name.to_owned());
            Some(7)
        })
        .unwrap();
    assert_eq!((called.len(), &*numbers.0.borrow()), (3, &vec![10, 2, 30]));

    numbers.0.borrow_mut()[0] = 11;
    numbers.0.borrow_mut()[2] = 31;
    let error = found.apply(&mut Editor, safe, |_, node| Some(node.1 + 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnsafeUpdate);
    assert!(error.to_string().contains("`0`, `2` are no longer"), "{error}");
    assert_eq!(*numbers.0.borrow(), [11, 2, 31], "nothing was replaced");
    // What is not replaced need not be there any more.
    found.apply(&mut Editor, safe, |name, _| (name == "1").then_some(5)).unwrap();
    found
        .apply(&mut Editor, ApplyOptions { safe: false, update: true }, |_, node| Some(node.1 + 1))
        .unwrap();
    assert_eq!(*numbers.0.borrow(), [11, 6, 31]);

    assert_eq!(found[0].update(&mut Editor, 0, true).unwrap().node.1, 0);
    assert_eq!(found[0].update(&mut Editor, 1, true).unwrap_err().kind(), ErrorKind::UnsafeUpdate);
    let error = found[1].update(&mut Editor, 13, true).unwrap_err();
    assert_eq!(error.to_string(), "cannot replace `1`: 13 is not allowed");
}
