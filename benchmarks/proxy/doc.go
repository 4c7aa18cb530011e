// Package proxy measures what a request costs on its way through interceptor/proxy, beside a minimal reverse proxy
// made with fasthttp, in one run. It holds tests only. Start at README.md.
package proxy
