// Package docs holds the reference pages to what the code says. It changes no page but under -rewrite. Start at
// TestCodesPage.
package docs
