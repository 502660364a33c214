//! The implementation that the derive writes.

use std::collections::HashMap;

use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Data, DataEnum, DeriveInput, Error, Fields, Path, Result, Type, Variant};

use crate::attributes::{OnField, OnType, OwnClass, none_on_variant};
use crate::problems::Problems;

/// `impl Module for ...`, or every mistake found in the input.
pub(crate) fn module(input: &DeriveInput) -> Result<TokenStream> {
    let mut problems = Problems::default();
    for lifetime in input.generics.lifetimes() {
        let message = format!(
            "a module owns its parts, so `{}` cannot borrow for `{}`: hold the part itself, or an `Arc` of it",
            input.ident, lifetime.lifetime
        );
        problems.add(Error::new(lifetime.span(), message));
    }
    let on_type = problems.take(OnType::parse(&input.attrs));
    let body = match &input.data {
        Data::Struct(data) => problems.take(Shown::new(&data.fields)).map(Body::Struct),
        Data::Enum(data) => Body::of_enum(data, &mut problems),
        Data::Union(data) => {
            let message = "a union cannot be a module: which of its fields is there is not known";
            problems.add(Error::new(data.union_token.span, message));
            None
        }
    };
    if let (Some(OnType { describes_class: Some(span), .. }), Some(body)) = (&on_type, &body)
        && body.is_always_payload()
    {
        let message = format!(
            "every variant of `{}` stands for the module in it and has that module's class, so this says nothing: remove \
             it, or give the fields names, `Variant {{ name: .. }}`",
            input.ident
        );
        problems.add(Error::new(*span, message));
    }
    problems.finish()?;
    // Without problems both are there.
    let (Some(on_type), Some(body)) = (on_type, body) else { return Ok(TokenStream::new()) };
    Ok(body.implement(input, &on_type))
}

/// What the type shows.
enum Body {
    Struct(Shown),
    Enum(Vec<(Ident, Case)>),
}

/// What one variant shows.
enum Case {
    /// It stands for the module in its only, unnamed field.
    Payload(Box<Type>),
    Fields(Shown),
}

/// The fields of a struct or variant, in order.
struct Shown {
    fields: Vec<ShownField>,
    /// The field that holds the aliases.
    aliases: Option<Box<ShownField>>,
}

struct ShownField {
    /// `weight` or `0`: how the field is reached in a pattern.
    member: syn::Member,
    /// The name it is bound to in the pattern.
    binding: Ident,
    name: String,
    ty: Type,
}

impl Shown {
    fn new(fields: &Fields) -> Result<Self> {
        let mut problems = Problems::default();
        let mut shown = Vec::new();
        let mut aliases: Option<Box<ShownField>> = None;
        let mut seen: HashMap<String, String> = HashMap::new();
        for (index, (field, member)) in fields.iter().zip(fields.members()).enumerate() {
            let Some(on_field) = problems.take(OnField::parse(&field.attrs)) else { continue };
            if on_field.skip {
                continue;
            }
            let own_name = match &field.ident {
                Some(ident) => ident.unraw().to_string(),
                None => index.to_string(),
            };
            let binding = format_ident!("field_{index}", span = Span::mixed_site());
            if let Some(span) = on_field.aliases {
                let ty = field.ty.clone();
                let field = ShownField { member, binding, name: own_name.clone(), ty };
                if let Some(first) = aliases.replace(Box::new(field)) {
                    let message = format!(
                        "`{}` holds the aliases already, and a module has them once",
                        first.name
                    );
                    problems.add(Error::new(span, message));
                }
                continue;
            }
            let (name, span) = on_field.rename.unwrap_or_else(|| (own_name.clone(), member.span()));
            if let Some(first) = seen.insert(name.clone(), own_name.clone()) {
                let message = format!(
                    "the fields `{first}` and `{own_name}` would both be children named `{name}`; names of children differ"
                );
                problems.add(Error::new(span, message));
            }
            shown.push(ShownField { member, binding, name, ty: field.ty.clone() });
        }
        problems.finish()?;
        Ok(Self { fields: shown, aliases })
    }

    /// `{ weight: field_0, .. }`
    fn pattern(&self) -> TokenStream {
        let bound =
            self.fields.iter().map(|ShownField { member, binding, .. }| quote!(#member: #binding));
        quote!({ #(#bound,)* .. })
    }

    fn statements(&self, krate: &Path, method: &str) -> TokenStream {
        let method = Ident::new(method, Span::mixed_site());
        let calls = self.fields.iter().map(|ShownField { binding, name, ty, .. }| {
            // Naming the type makes the compiler point at it when it is no `Field`.
            quote!(<#ty as #krate::module::Field<_>>::#method(#binding, #name, visitor);)
        });
        quote!(#(#calls)*)
    }
}

impl Body {
    fn of_enum(data: &DataEnum, problems: &mut Problems) -> Option<Self> {
        let cases: Vec<Option<(Ident, Case)>> =
            data.variants.iter().map(|variant| problems.take(case(variant))).collect();
        Some(Body::Enum(cases.into_iter().collect::<Option<_>>()?))
    }

    fn implement(&self, input: &DeriveInput, on_type: &OnType) -> TokenStream {
        let krate = &on_type.krate;
        let ident = &input.ident;
        let (impl_generics, ty_generics, where_clause) = input.generics.split_for_impl();
        let class = self.class(ident, on_type);
        let visit = self.visit(krate, "visit", "show");
        let visit_mut = self.visit(krate, "visit_mut", "show_mut");
        let delegated = self.delegated(krate);
        quote! {
            #[automatically_derived]
            impl #impl_generics #krate::module::Module for #ident #ty_generics #where_clause {
                fn class(&self) -> #krate::mpath::Class { #class }

                #[allow(unused_variables)]
                fn visit<'visited>(&'visited self, visitor: &mut dyn #krate::module::Visitor<'visited>) { #visit }

                #[allow(unused_variables)]
                fn visit_mut(&mut self, visitor: &mut dyn #krate::module::VisitorMut) { #visit_mut }

                #delegated
            }
        }
    }

    /// Whether no value shows fields of its own.
    fn is_always_payload(&self) -> bool {
        match self {
            Body::Struct(_) => false,
            Body::Enum(cases) => {
                cases.iter().all(|(_, case)| matches!(case, Case::Payload(_))) && !cases.is_empty()
            }
        }
    }

    fn class(&self, ident: &Ident, OnType { class, krate, .. }: &OnType) -> TokenStream {
        let own = match class {
            OwnClass::Known(class) => quote!(#class),
            OwnClass::New { name, extends } => {
                let name = name.clone().unwrap_or_else(|| ident.unraw().to_string());
                quote! {{
                    static CLASS: ::std::sync::OnceLock<#krate::mpath::Class> = ::std::sync::OnceLock::new();
                    *CLASS.get_or_init(|| #krate::mpath::Class::define(
                        #name,
                        ::core::concat!(::core::module_path!(), "::", #name),
                        &[#(#extends,)* #krate::module::classes::module()],
                    ))
                }}
            }
        };
        let payloads: Vec<TokenStream> = self
            .payloads()
            .map(|(variant, ty)| {
                quote!(Self::#variant(payload) => <#ty as #krate::module::field::Payload>::as_module(payload).class(),)
            })
            .collect();
        match self {
            Body::Enum(cases) if cases.is_empty() => quote!(match *self {}),
            Body::Enum(cases) if payloads.len() == cases.len() => {
                quote!(match self { #(#payloads)* })
            }
            _ if payloads.is_empty() => own,
            _ => quote!(match self { #(#payloads)* _ => #own }),
        }
    }

    fn visit(&self, krate: &Path, visit: &str, show: &str) -> TokenStream {
        match self {
            Body::Struct(shown) => {
                let (pattern, statements) = (shown.pattern(), shown.statements(krate, show));
                quote!(let Self #pattern = self; #statements)
            }
            Body::Enum(cases) if cases.is_empty() => quote!(match *self {}),
            Body::Enum(cases) => {
                let method = Ident::new(visit, Span::mixed_site());
                let as_module = match visit {
                    "visit" => quote!(as_module),
                    _ => quote!(as_module_mut),
                };
                let arms = cases.iter().map(|(variant, case)| match case {
                    Case::Payload(ty) => quote! {
                        Self::#variant(payload) => {
                            <#ty as #krate::module::field::Payload>::#as_module(payload).#method(visitor)
                        }
                    },
                    Case::Fields(shown) => {
                        let (pattern, statements) = (shown.pattern(), shown.statements(krate, show));
                        quote!(Self::#variant #pattern => { #statements })
                    }
                });
                quote!(match self { #(#arms)* })
            }
        }
    }

    /// The aliases in a field that is marked so. A variant that is the module in it has that module's aliases and identity
    /// too.
    fn delegated(&self, krate: &Path) -> TokenStream {
        let none = quote!(_ => ::core::option::Option::None,);
        let payloads = |method: &TokenStream| -> Vec<TokenStream> {
            self.payloads()
                .map(|(variant, ty)| {
                    quote!(Self::#variant(payload) => <#ty as #krate::module::field::Payload>::as_module(payload).#method(),)
                })
                .collect()
        };
        let shown: Vec<(TokenStream, &Shown)> = match self {
            Body::Struct(shown) => vec![(quote!(Self), shown)],
            Body::Enum(cases) => cases
                .iter()
                .filter_map(|(variant, case)| match case {
                    Case::Fields(shown) => Some((quote!(Self::#variant), shown)),
                    Case::Payload(_) => None,
                })
                .collect(),
        };
        let fields = shown.iter().filter_map(|(constructor, shown)| {
            let ShownField { member, binding, ty, .. } = &**shown.aliases.as_ref()?;
            Some(quote! {
                #constructor { #member: #binding, .. } => <#ty as #krate::module::field::HoldsAliases>::aliases(#binding),
            })
        });
        let identities = payloads(&quote!(identity));
        let aliases: Vec<TokenStream> =
            payloads(&quote!(aliases)).into_iter().chain(fields).collect();
        let method = |arms: &[TokenStream], signature: TokenStream| {
            (!arms.is_empty()).then(|| {
                quote! {
                    #[allow(unreachable_patterns)]
                    #signature { match self { #(#arms)* #none } }
                }
            })
        };
        let aliases = method(
            &aliases,
            quote!(fn aliases(&self) -> ::core::option::Option<&#krate::mpath::Aliases>),
        );
        let identity =
            method(&identities, quote!(fn identity(&self) -> ::core::option::Option<usize>));
        quote!(#aliases #identity)
    }

    fn payloads(&self) -> impl Iterator<Item = (&Ident, &Type)> {
        let cases = match self {
            Body::Struct(_) => &[],
            Body::Enum(cases) => cases.as_slice(),
        };
        cases.iter().filter_map(|(variant, case)| match case {
            Case::Payload(ty) => Some((variant, &**ty)),
            Case::Fields(_) => None,
        })
    }
}

fn case(variant: &Variant) -> Result<(Ident, Case)> {
    none_on_variant(&variant.attrs)?;
    let name = variant.ident.clone();
    if let Fields::Unnamed(fields) = &variant.fields
        && fields.unnamed.len() == 1
    {
        let field = &fields.unnamed[0];
        let on_field = OnField::parse(&field.attrs)?;
        if !on_field.skip && on_field.rename.is_none() && on_field.aliases.is_none() {
            return Ok((name, Case::Payload(Box::new(field.ty.clone()))));
        }
    }
    Ok((name, Case::Fields(Shown::new(&variant.fields)?)))
}
