//! The implementation that the derive writes.

use std::collections::HashMap;

use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Data, DataEnum, DeriveInput, Error, Fields, Path, Result, Type, Variant};

use crate::attributes::{OnField, OnType, none_on_variant};
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
            let (name, span) = on_field.rename.unwrap_or_else(|| (own_name.clone(), member.span()));
            if let Some(first) = seen.insert(name.clone(), own_name.clone()) {
                let message = format!(
                    "the fields `{first}` and `{own_name}` would both be children named `{name}`; names of children differ"
                );
                problems.add(Error::new(span, message));
            }
            let binding = format_ident!("field_{index}", span = Span::mixed_site());
            shown.push(ShownField { member, binding, name, ty: field.ty.clone() });
        }
        problems.finish()?;
        Ok(Self { fields: shown })
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

    fn class(&self, ident: &Ident, OnType { class, extends, krate }: &OnType) -> TokenStream {
        let name = class.clone().unwrap_or_else(|| ident.unraw().to_string());
        let own = quote! {{
            static CLASS: ::std::sync::OnceLock<#krate::mpath::Class> = ::std::sync::OnceLock::new();
            *CLASS.get_or_init(|| #krate::mpath::Class::define(
                #name,
                ::core::concat!(::core::module_path!(), "::", #name),
                &[#(#extends,)* #krate::module::classes::module()],
            ))
        }};
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

    /// A variant that is the module in it has that module's aliases and identity too.
    fn delegated(&self, krate: &Path) -> TokenStream {
        let delegate = |method: TokenStream, result: TokenStream| {
            let arms = self.payloads().map(|(variant, ty)| {
                quote!(Self::#variant(payload) => <#ty as #krate::module::field::Payload>::as_module(payload).#method(),)
            });
            quote! {
                fn #method(&self) -> ::core::option::Option<#result> {
                    #[allow(unreachable_patterns)]
                    match self { #(#arms)* _ => ::core::option::Option::None }
                }
            }
        };
        if self.payloads().next().is_none() {
            return TokenStream::new();
        }
        let aliases = delegate(quote!(aliases), quote!(&#krate::mpath::Aliases));
        let identity = delegate(quote!(identity), quote!(usize));
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
        if !on_field.skip && on_field.rename.is_none() {
            return Ok((name, Case::Payload(Box::new(field.ty.clone()))));
        }
    }
    Ok((name, Case::Fields(Shown::new(&variant.fields)?)))
}
