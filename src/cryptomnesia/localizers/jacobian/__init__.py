"""The diagonal of a network's Jacobian, estimated from products with it."""
