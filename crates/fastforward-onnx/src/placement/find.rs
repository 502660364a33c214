//! The constant that a site reads.

use std::collections::HashMap;

use crate::edit::graph_at;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Constant, Model, constants_of};
use crate::tree::{NestedGraph, Site};

/// Looks constants up, in nested graphs too. The constants of each graph are listed once.
pub(crate) struct ConstantFinder<'m> {
    model: &'m Model,
    graphs: HashMap<Vec<NestedGraph>, HashMap<&'m str, Constant<'m>>>,
}

impl<'m> ConstantFinder<'m> {
    pub(crate) fn new(model: &'m Model) -> Self {
        Self { model, graphs: HashMap::new() }
    }

    /// The constant at `site`, and the graph that holds it: the innermost one around the site that has the name.
    ///
    /// # Errors
    /// `NotFound` where there is none, which is so when the site is one of another model.
    pub(crate) fn find(&mut self, site: &Site) -> Result<(Vec<NestedGraph>, Constant<'m>)> {
        for depth in (0..=site.node.graph.len()).rev() {
            let path = &site.node.graph[..depth];
            if let Some(constant) = self.graph(path).and_then(|g| g.get(site.value.as_str())) {
                return Ok((path.to_vec(), constant.clone()));
            }
        }
        Err(Error::new(
            ErrorKind::NotFound,
            format!(
                "`{}`: the graph has no constant `{}`; is the tree one of this model?",
                site.name, site.value
            ),
        ))
    }

    fn graph(&mut self, path: &[NestedGraph]) -> Option<&HashMap<&'m str, Constant<'m>>> {
        if !self.graphs.contains_key(path) {
            let graph = graph_at(self.model.graph(), path)?;
            let found = constants_of(graph, self.model.folder());
            let found = found.map(|constant| (constant.name(), constant)).collect();
            self.graphs.insert(path.to_vec(), found);
        }
        self.graphs.get(path)
    }
}
