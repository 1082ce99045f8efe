"""Networks with data that an optimizer can be meta-trained or judged on."""
