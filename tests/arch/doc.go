// Package arch holds the tree to its own rules: which package may import which, what the core may not do, how long
// functions and files may grow, what may stand at package level, and what may not stand in any text. It judges
// syntax and import lists only, never behaviour, and passes packages that do not exist yet. Each rule is proved on
// a small tree in testdata whose bad lines say what is wrong with them. Start at rules in arch_test.go.
package arch
