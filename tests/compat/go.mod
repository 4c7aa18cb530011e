module txmesh/tests/compat

go 1.26.0

require (
	github.com/go-sql-driver/mysql v1.10.1
	github.com/google/go-cmp v0.7.0
)

require filippo.io/edwards25519 v1.2.0 // indirect
